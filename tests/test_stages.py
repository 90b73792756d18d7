import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tools.stages import (
    Stage,
    StageError,
    minutes,
    module_stage,
    run_chains,
    run_stages,
)

ROOT = pathlib.Path(__file__).parents[1]

# Adds a line to the file that it is given, and then obeys.
APPEND = "import sys; print(sys.argv[2], file=open(sys.argv[1], 'a')); "


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "demo")


def appending_stage(folder, name, text="once", then="", resumes=False):
    output = os.path.join(folder, f"{name}.out")
    arguments = ("-c", APPEND + then, output, text)
    return Stage(name, f"stage {name}", arguments, output, resumes)


def lines_of(stage):
    return pathlib.Path(stage.output).read_text().split()


def test_stages_run_in_order_and_print_a_line_each(folder, capfd):
    stages = [appending_stage(folder, name) for name in ("first", "second")]
    markers = run_stages(stages, folder)
    assert [lines_of(stage) for stage in stages] == [["once"], ["once"]]
    printed = capfd.readouterr().out.splitlines()
    assert [line.split() for line in printed] == [
        ["stage", "first", "0:00"],
        ["stage", "second", "0:00"],
    ]
    assert all(marker["done"] and marker["peak_mib"] > 0 for marker in markers)


def test_what_is_done_is_not_run_again(folder, capfd):
    stage = appending_stage(folder, "first")
    first = run_stages([stage], folder)
    assert run_stages([stage], folder) == first
    assert lines_of(stage) == ["once"]
    assert capfd.readouterr().out.splitlines()[1].endswith("done before")


def test_a_changed_command_runs_again_on_a_clean_output_and_so_do_those_after(folder):
    before, last = (appending_stage(folder, name) for name in ("before", "last"))
    run_stages([before, appending_stage(folder, "middle", "old"), last], folder)
    pathlib.Path(last.output).write_text("stale")
    changed = appending_stage(folder, "middle", "new")
    run_stages([before, changed, last], folder)
    assert lines_of(before) == ["once"]
    assert lines_of(changed) == ["new"]
    assert lines_of(last) == ["once"]


@pytest.mark.parametrize(("resumes", "lines"), [(True, 2), (False, 1)])
def test_a_failed_stage_keeps_its_output_only_if_it_goes_on_with_it(
    folder, resumes, lines
):
    broken = os.path.join(folder, "broken")
    then = f"import os; sys.exit(os.path.exists({broken!r}))"
    stage = appending_stage(folder, "first", then=then, resumes=resumes)
    os.makedirs(folder)
    pathlib.Path(broken).touch()
    with pytest.raises(StageError, match="exit code 1"):
        run_stages([stage], folder)
    os.unlink(broken)
    run_stages([stage], folder)
    assert lines_of(stage) == ["once"] * lines


def test_a_failure_shows_the_end_of_the_log_and_its_name(folder):
    then = "[print(f'line {i}') for i in range(99)]; sys.exit('bad vocabulary')"
    stage = appending_stage(folder, "first", then=then)
    with pytest.raises(StageError) as failure:
        run_stages([stage, appending_stage(folder, "second")], folder)
    message = str(failure.value)
    assert os.path.join(folder, "logs", "first.txt") in message
    assert message.endswith("bad vocabulary")
    assert "line 50" not in message
    assert not os.path.exists(os.path.join(folder, "second.out"))


def test_the_times_of_interrupted_runs_add_up(folder):
    then = "import time; time.sleep(0.2); sys.exit(1)"
    stage = appending_stage(folder, "first", then=then, resumes=True)
    for _ in range(2):
        with pytest.raises(StageError):
            run_stages([stage], folder)
    path = os.path.join(folder, "stages", "first.json")
    marker = json.loads(pathlib.Path(path).read_text())
    assert marker["seconds"] >= 0.4
    assert not marker["done"]


def test_two_runs_in_one_folder_are_refused(folder):
    run_stages([], folder)
    with open(os.path.join(folder, "stages", "lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StageError, match="Another run"):
            run_stages([appending_stage(folder, "first")], folder)


def test_a_terminated_run_takes_its_command_along_and_can_be_continued(folder):
    script = (
        "import signal, sys; from tools.demo import end; "
        "from tools.stages import Stage, run_stages; "
        "signal.signal(signal.SIGTERM, end); "
        "run_stages([Stage('a', 'a', ('-c', sys.argv[2]), 'none')], sys.argv[1])"
    )
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", script, folder, sleeper],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    log = pathlib.Path(folder, "logs", "a.txt")
    while not (log.exists() and log.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.02)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    run_stages([appending_stage(folder, "first")], folder)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.7, "1:00"), (61, "1:01"), (3600, "60:00")]
)
def test_times_are_minutes_and_seconds(seconds, text):
    assert minutes(seconds) == text


def test_chains_run_at_once_and_each_in_order(folder):
    os.makedirs(folder)
    met = [os.path.join(folder, f"met_{i}") for i in range(2)]
    # Each waits until the other is there: one after the other they never end.
    waits = "import os, time; open({!r}, 'w')\nwhile not os.path.exists({!r}): "
    waits += "time.sleep(0.01)"
    chains = [
        [
            appending_stage(
                folder, f"first_{i}", then=waits.format(*met[:: 1 - 2 * i])
            ),
            appending_stage(folder, f"second_{i}"),
        ]
        for i in range(2)
    ]
    found = dict(run_chains(chains, folder, num_workers=2))
    assert sorted(found) == [0, 1]
    assert all(marker["done"] for markers in found.values() for marker in markers)
    assert all(lines_of(stage) == ["once"] for chain in chains for stage in chain)


def test_a_failing_chain_ends_the_others(folder):
    sleeper = appending_stage(folder, "sleeper", then="import time; time.sleep(600)")
    waits = "import os, time\nwhile not os.path.exists({!r}): time.sleep(0.01)\n"
    failing = appending_stage(
        folder, "failing", then=waits.format(sleeper.output) + "sys.exit(3)"
    )
    chains = [[sleeper, appending_stage(folder, "after")], [failing]]
    with pytest.raises(StageError, match="failing ended with exit code 3"):
        list(run_chains(chains, folder, num_workers=2))
    assert not os.path.exists(os.path.join(folder, "after.out"))
    marker = os.path.join(folder, "stages", "sleeper.json")
    assert not json.loads(pathlib.Path(marker).read_text())["done"]


def test_a_command_that_saves_and_exits_when_asked_to_end_is_not_done(folder):
    script = (
        "import signal, sys; from tools.demo import end; "
        "from tools.stages import Stage, run_chains; "
        "signal.signal(signal.SIGTERM, end); "
        "chain = [Stage('a', 'a', ('-c', sys.argv[2]), 'none')]; "
        "list(run_chains([chain], sys.argv[1], 1))"
    )
    saver = (
        "import signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        "print('ready', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, folder, saver], cwd=ROOT)
    log = pathlib.Path(folder, "logs", "a.txt")
    while not (log.exists() and log.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 143
    marker = pathlib.Path(folder, "stages", "a.json")
    assert not json.loads(marker.read_text())["done"]


def test_every_command_is_asked_to_end_once_and_may_take_its_time(folder):
    """As trainers do: a second signal ends them in the midst of their saving."""
    saver = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "    time.sleep(float(sys.argv[1]))\n"
        "    print('saved', flush=True)\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    chains = [
        [Stage(f"saver_{i}", "saver", ("-c", saver, str(i)), f"none_{i}")]
        for i in range(3)
    ]
    logs = [pathlib.Path(folder, "logs", f"saver_{i}.txt") for i in range(3)]
    waits = "import pathlib, sys, time\nwhile any('ready' not in pathlib.Path(one)"
    waits += ".read_text() for one in sys.argv[1:]): time.sleep(0.01)\nsys.exit(3)"
    arguments = ("-c", waits, *map(str, logs))
    chains.append([Stage("failing", "failing", arguments, "none")])
    os.makedirs(os.path.join(folder, "logs"))
    for log in logs:
        log.touch()
    with pytest.raises(StageError, match="failing ended with exit code 3"):
        list(run_chains(chains, folder, num_workers=4))
    assert [log.read_text().split() for log in logs] == [["ready", "saved"]] * 3


def test_a_closed_generator_ends_what_runs_and_what_waits(folder):
    sleeper = appending_stage(folder, "sleeper", then="import time; time.sleep(600)")
    chains = [[appending_stage(folder, "first")], [sleeper]]
    chains.append([appending_stage(folder, "waiting")])
    done = run_chains(chains, folder, num_workers=1)
    with contextlib.closing(done):
        assert next(done)[0] == 0
    assert not os.path.exists(os.path.join(folder, "waiting.out"))


def test_chains_run_again_when_what_they_use_is_made_anew(folder, capfd):
    stage = appending_stage(folder, "first")
    for key in ("old", "old", "new"):
        list(run_chains([[stage]], folder, 1, key))
    told = [
        line.endswith("done before") for line in capfd.readouterr().out.splitlines()
    ]
    assert told == [False, True, False]


def test_commands_get_variables(folder):
    code = "import os; print(os.environ['MINE'], os.environ['PATH'], sep='|')"
    stage = Stage("first", "first", ("-c", code), "none")
    list(run_chains([[stage]], folder, 1, environment={"MINE": "mine"}))
    log = pathlib.Path(folder, "logs", "first.txt").read_text()
    assert log == f"mine|{os.environ['PATH']}\n"


def test_the_stage_of_a_module_is_its_command():
    stage = module_stage("a", "title", "out", "tools.demo_data", output="out", steps=3)
    assert stage.arguments == (
        "-m",
        "tools.demo_data",
        *"--output out --steps 3".split(),
    )
    assert not stage.resumes
