"""SIGTERM and Ctrl-C: between steps, in an evaluation, at the end, of one worker."""

import os
import re
import signal

import pytest

from deberta_tf.files import UsageError
from tests.test_trainers_devices import SETTINGS, finish, workers
from tests.test_trainers_pretrain import data, flags
from tests.test_trainers_run import (
    assert_same_weights,
    at_step,
    evaluation_of,
    lines,
    small_config,
    train,
    without_speed,
)
from trainers import callbacks, run
from trainers.interruption import Interruption
from trainers.scalars import Scalars
from trainers.state import checkpoints

__all__ = ["data"]
SCORES = [0.5, 0.7, 0.2]


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def stopping_evaluation(scores, at):
    """An evaluation that a signal reaches in the `at`-th time, counted from 0."""
    evaluate = evaluation_of(scores).evaluate
    begun = []

    def evaluate_and_stop(task, max_batches=-1):
        begun.append(task)
        if len(begun) == at + 1:
            terminate()
            pytest.fail("the signal did not end the evaluation")
        return evaluate(task)

    return run.Evaluation(evaluate_and_stop, 2, "accuracy", True, "dev")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_evaluation_ends_at_once_and_is_made_up(tmp_path, at):
    whole, _ = train(small_config(tmp_path / "whole"), evaluation=evaluation_of(SCORES))
    config = small_config(tmp_path / "stopped", save_every=6)
    _, stopped_by = train(config, evaluation=stopping_evaluation(SCORES[:at], at))
    assert stopped_by == signal.SIGTERM
    newest = checkpoints(run._checkpoint_dir(config))[0]
    assert newest.endswith(f"step-{2 * at + 2:09d}.safetensors")
    assert not [line for line in lines(config)[at * 2 :] if "dev/accuracy" in line]
    resumed, stopped_by = train(config, evaluation=evaluation_of(SCORES[at:]))
    assert stopped_by is None
    assert_same_weights(whole, resumed)
    expected = without_speed(lines(small_config(tmp_path / "whole")))
    assert without_speed(lines(config)) == expected
    assert callbacks.read_scores(run.preset_dir(config)) == {"step": 4, "accuracy": 0.7}


def test_what_is_made_up_is_stopped_too(tmp_path):
    config = small_config(tmp_path)
    for _ in range(2):
        _, stopped_by = train(config, evaluation=stopping_evaluation([], 0))
        assert stopped_by == signal.SIGTERM
    assert len(checkpoints(run._checkpoint_dir(config))) == 1
    train(config, evaluation=evaluation_of(SCORES))
    scored = [line["step"] for line in lines(config) if "dev/accuracy" in line]
    assert scored == [2, 4, 6]


def test_a_signal_before_an_evaluation_does_not_wait_for_it(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, 4, terminate)
        # A third score would be drawn from an empty list.
        train(config, evaluation=evaluation_of(SCORES[:1]))
    _, stopped_by = train(config, evaluation=evaluation_of(SCORES[1:]))
    assert stopped_by is None
    assert callbacks.read_scores(run.preset_dir(config))["step"] == 4


def test_a_signal_at_the_last_step_leaves_the_rest_to_the_same_command(
    tmp_path, monkeypatch
):
    config = small_config(tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, 6, terminate)
        _, stopped_by = train(config)
    assert stopped_by == signal.SIGTERM
    _, stopped_by = train(config)
    assert stopped_by is None


def test_an_evaluation_that_was_done_is_not_done_again(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, 3, terminate)
        train(config, evaluation=evaluation_of(SCORES[:1]))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        at_step(patch, 5, crash_after_saving)
        train(config, evaluation=evaluation_of(SCORES[1:2]))
    train(config, evaluation=evaluation_of(SCORES[2:]))
    accuracies = [line.get("dev/accuracy") for line in lines(config)]
    assert [accuracy for accuracy in accuracies if accuracy] == SCORES


def crash_after_saving():
    raise RuntimeError("killed")


def test_the_second_signal_kills():
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with Interruption() as interruption:
        assert [signal.getsignal(number) for number in numbers] != before
        terminate()
        assert [signal.getsignal(number) for number in numbers] == before
        assert interruption.signal is None
        interruption.meet()
        assert interruption.signal == signal.SIGTERM


def test_a_signal_to_another_process_stops_this_one():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption(lambda noted: [0.0, 2.0]) as interruption:
        interruption.meet()
        assert interruption.signal == signal.SIGINT
    # Told to stop as well, a little later, it still ends as it should.
    terminate()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "x"}'])
def test_a_broken_line_of_scalars_is_refused_by_its_number(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(UsageError, match=r"metrics.jsonl, line 2 must be .* Found: "):
        Scalars(str(tmp_path), 2)


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_both(data, tmp_path):
    settings = {**SETTINGS, "total_steps": 80, "eval_every": 80, "log_every": 2}
    command = flags(data, tmp_path / "run", **settings)
    started = workers(command)
    for line in started[1].stdout:
        if line.startswith("step 2/"):
            started[1].send_signal(signal.SIGTERM)
            break
    outs = [finish(process) for process in started]
    (step,) = {int(re.search(r"saved at step (\d+);", out)[1]) for out in outs}
    assert 2 <= step < 80
    paths = checkpoints(tmp_path / "run" / "checkpoints")
    assert [os.path.basename(path) for path in paths] == [
        f"step-{step:09d}.safetensors"
    ]
    for process in workers(command):
        out = finish(process)
        assert f"going on from the checkpoint of step {step}" in out
    assert (tmp_path / "run" / "results.json").exists()
