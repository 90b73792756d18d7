"""Checkpoints: whole or not there, whatever moment a run is killed at."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.files import UsageError, recover_directory
from tests.test_trainers_devices import finish, start, weights, workers
from tests.test_trainers_pretrain import data, flags
from tests.test_trainers_run import save, small_config, small_task, train
from trainers import scalars, state
from trainers.state import SavingFailed, TrainingState, checkpoints, read_checkpoint

__all__ = ["data"]


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    arrays = {
        "a": np.arange(6, dtype="float32").reshape(2, 3) / 7,
        "b": np.array(5, "int64"),
        "c": np.zeros((0, 2), "float16"),
        "d": np.array([2**32 - 1, 3], "uint32"),
    }
    state.write_checkpoint(str(tmp_path), 12, arrays)
    (path,) = checkpoints(tmp_path)
    step, found = read_checkpoint(path)
    assert step == 12
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_any_other_bit_and_any_other_length_is_noticed(tmp_path):
    arrays = {"a": np.arange(40, dtype="float32"), "b": np.array([1, 2], "int64")}
    state.write_checkpoint(str(tmp_path), 12, arrays)
    (path,) = checkpoints(tmp_path)
    whole = (tmp_path / os.path.basename(path)).read_bytes()
    damaged = tmp_path / "damaged"
    rng = random.Random(5)
    for _ in range(400):
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << bit
        damaged.write_bytes(spoilt)
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(str(damaged))
    for length in (0, 1, 7, 8, 100, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged is not a whole file"):
            read_checkpoint(str(damaged))


def steps_of(directory):
    return [int(os.path.basename(path)[5:14]) for path in checkpoints(directory)]


def spoil(path):
    with open(path, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path, capsys):
    whole, _ = train(small_config(tmp_path / "whole"))
    config = small_config(tmp_path / "damaged")
    train(config)
    folder = tmp_path / "damaged" / "checkpoints"
    assert steps_of(folder) == [6, 4]
    spoil(checkpoints(folder)[0])
    again, _ = train(config)
    output = capsys.readouterr()
    assert "damaged: " in output.err
    assert "step-000000006.safetensors has SHA-256" in output.err
    assert "going on from the checkpoint of step 4" in output.out
    for a, b in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for path in checkpoints(folder):
        spoil(path)
    with pytest.raises(UsageError, match="no checkpoint in .* is whole"):
        train(config)


def test_old_checkpoints_go_when_the_new_one_has_been_read_back(tmp_path, monkeypatch):
    task, _ = small_task(small_config(tmp_path))
    for step in (1, 2, 3):
        save(task, tmp_path, step)
    assert steps_of(tmp_path) == [3, 2]

    def damaged(path):
        raise ValueError(f"{path} is damaged")

    monkeypatch.setattr(state, "read_checkpoint", damaged)
    with pytest.raises(SavingFailed, match="step 4 could not be saved .*is damaged"):
        save(task, tmp_path, 4)
    assert steps_of(tmp_path) == [3, 2]
    assert len(os.listdir(tmp_path)) == 2


def test_damaged_checkpoints_do_not_take_the_place_of_whole_ones(tmp_path):
    task, _ = small_task(small_config(tmp_path))
    one = TrainingState(task, str(tmp_path), keep=3)
    for step in (1, 4, 5):
        one.save(step)
        one.wait()
    for path in checkpoints(tmp_path)[:2]:
        spoil(path)
    again = TrainingState(task, str(tmp_path))
    assert again.restore() == 1
    again.save(2)
    again.wait()
    assert steps_of(tmp_path) == [2, 1]
    assert TrainingState(task, str(tmp_path)).restore() == 2


def raise_at(monkeypatch, wanted, message):
    """Lets the scalars of a step fail as TensorFlow does where it has no room."""
    write = scalars.Scalars.write

    def write_or_raise(self, step, scalars):
        if step == wanted:
            raise tf.errors.ResourceExhaustedError(None, None, message)
        write(self, step, scalars)

    monkeypatch.setattr(scalars.Scalars, "write", write_or_raise)


def test_scalars_on_a_full_disk_are_one_line_too(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    raise_at(monkeypatch, 4, "events.v2; No space left on device\n\tCould not flush")
    message = (
        r"^the disk is full: events.v2; No space left on device\. The last good "
        r"checkpoint is .*step-000000002\.safetensors; the same command goes on"
    )
    with pytest.raises(SavingFailed, match=message):
        train(config)


def test_a_full_device_is_no_full_disk(tmp_path, monkeypatch):
    raise_at(monkeypatch, 4, "OOM when allocating tensor")
    with pytest.raises(tf.errors.ResourceExhaustedError, match="OOM when"):
        train(small_config(tmp_path))


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from trainers import pretrain, state
from deberta_tf import files
write = state.write_checkpoint
def limited(directory, step, arrays):
    if step > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    try:
        write(directory, step, arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
state.write_checkpoint = limited
files.run_command(pretrain.main)
"""


def run_script(script, command):
    return subprocess.run(
        [sys.executable, "-c", script, *command],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(data, tmp_path):
    done = run_script(FULL_DISK, flags(data, tmp_path))
    assert done.returncode == 2, done.stderr
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
    assert "step 4 could not be saved" in line
    assert "File too large" in line
    assert "last good checkpoint is" in line
    assert "step-000000002.safetensors; the same command goes on from there" in line
    folder = tmp_path / "checkpoints"
    assert os.listdir(folder) == ["step-000000002.safetensors"]


def kill_after(delay, command):
    """Starts a run, and kills it so many seconds after its first line of output."""
    process = start(command)
    process.stdout.readline()
    time.sleep(delay)
    process.kill()
    out, _ = process.communicate()
    return process.returncode == -signal.SIGKILL


# Where in a save the process kills itself: before, amid and after each of its parts.
KILL_POINT = """
import os, signal, sys
from trainers import state
from deberta_tf import files
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
point, saves = sys.argv.pop(1), 0
write, read = state.write_checkpoint, state.read_checkpoint
def spied(directory, step, arrays):
    global saves
    saves += 1
    if saves == 2:
        if point == "half written":
            save = state.safetensors.numpy.save
            def half(*args):
                path = os.path.join(directory, f"step-{step:09d}.safetensors.new")
                with open(path, "wb") as file:
                    file.write(save(*args)[:5000])
                die()
            state.safetensors.numpy.save = half
        elif point == "written":
            state.read_checkpoint = die
        elif point == "read back":
            os.replace = die
        elif point == "named":
            write(directory, step, arrays)
            die()
    write(directory, step, arrays)
state.write_checkpoint = spied
from trainers import pretrain
files.run_command(pretrain.main)
"""
SETTINGS = {"average_decay": 0.9, "eval_every": 4, "total_steps": 8}


def same_bits(one, other):
    """Whether last checkpoints and presets of two runs are equal, bit for bit."""
    newest = [checkpoints(folder / "checkpoints")[0] for folder in (one, other)]
    (step, arrays), (other_step, others) = map(read_checkpoint, newest)
    assert step == other_step
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert array.tobytes() == others[name].tobytes(), name
    presets = [weights(folder) for folder in (one, other)]
    assert presets[0].keys() == presets[1].keys()
    for name, weight in presets[0].items():
        assert weight.tobytes() == presets[1][name].tobytes(), name
    return True


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start(settings(data, folder)))
    return folder


def settings(data, folder, **others):
    held_out = data / "rows" / "held_out"
    return flags(data, folder, held_out=held_out, **{**SETTINGS, **others})


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("half written", marks=pytest.mark.slow),
        pytest.param("named", marks=pytest.mark.slow),
        pytest.param("written", marks=pytest.mark.slow),
        pytest.param("read back", marks=pytest.mark.slow),
    ],
)
def test_a_kill_while_saving_changes_nothing(data, tmp_path, uninterrupted, point):
    command = settings(data, tmp_path)
    killed = run_script(KILL_POINT, [point, *command])
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    out = finish(start(command))
    assert "going on from the checkpoint of step" in out
    assert same_bits(uninterrupted, tmp_path)
    assert not [n for n in os.listdir(tmp_path / "checkpoints") if n.endswith(".new")]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 100])
def test_kills_at_random_moments_change_nothing(data, tmp_path, uninterrupted, kills):
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    done = 0
    for run in range(kills * 3):
        command = settings(data, tmp_path / str(run))
        while done < kills and kill_after(rng.uniform(0, 8), command):
            done += 1
        finish(start(command))
        assert same_bits(uninterrupted, tmp_path / str(run)), f"seed {seed}"
        if done >= kills:
            break
    assert done == kills, f"seed {seed}"


@pytest.mark.slow
def test_a_kill_of_one_worker_of_two_changes_nothing(data, tmp_path):
    whole, killed = (settings(data, tmp_path / name) for name in ("whole", "killed"))
    for process in workers(whole):
        finish(process)
    for victim in (0, 1):
        started = workers(killed)
        for process in started:
            process.stdout.readline()
        time.sleep(6 + 2 * victim)
        started[victim].kill()
        time.sleep(1)
        started[1 - victim].kill()
        for process in started:
            process.communicate()
    for process in workers(killed):
        finish(process)
    assert same_bits(tmp_path / "whole", tmp_path / "killed")


def test_a_preset_that_was_being_replaced_is_put_back(tmp_path):
    old = tmp_path / ".preset.abcd1234.old"
    new = tmp_path / ".preset.abcd1234"
    stranger = tmp_path / ".preset.mine"
    for folder in (old, new, stranger):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    recover_directory(str(tmp_path / "preset"))
    assert sorted(os.listdir(tmp_path)) == [".preset.mine", "preset"]
    assert (tmp_path / "preset" / "name").read_text() == old.name


def test_a_save_is_waited_for(tmp_path, monkeypatch):
    task, _ = small_task(small_config(tmp_path))
    write = state.write_checkpoint

    def slowly(*args):
        time.sleep(0.5)
        write(*args)

    monkeypatch.setattr(state, "write_checkpoint", slowly)
    one = TrainingState(task, str(tmp_path))
    one.save(1)
    assert steps_of(tmp_path) == []
    one.save(2)
    assert steps_of(tmp_path) == [1]
    one.wait()
    assert steps_of(tmp_path) == [2, 1]
