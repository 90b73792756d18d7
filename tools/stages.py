"""Commands run in a row, each once: interrupted, they go on where they were.

Every stage has a marker, `stages/<name>.json`, that holds its command, its time and
whether it is done. A stage runs again if its command, or one before it, changed.
Nothing here imports TensorFlow, which takes seconds, and prints.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time

LOG_LINES_SHOWN = 15
STOP_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    """Of its marker and its log."""
    title: str
    """What the line printed for it begins with."""
    arguments: tuple[str, ...]
    """Of the Python interpreter that runs it."""
    output: str
    """The file or folder it writes."""
    resumes: bool = False
    """Whether the command goes on with the output of an interrupted run."""


class StageError(Exception):
    """A command failed (the message shows the end of its log), or can't be begun."""


def run_stages(stages, folder):
    """Runs the stages not done yet, and prints a line for each with its time.

    Args:
        stages: list of `Stage`. Each may use what those before it wrote.
        folder: str. Where markers and logs go; made if missing.

    Returns:
        list of dict, the stages' markers: `seconds`, over all runs of the stage, and
        `peak_mib`, the most memory that a process held in the run that finished it.

    Raises:
        StageError: if a command ends with an exit code other than 0, or another run
            works in the folder.
    """
    for name in ("stages", "logs"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    markers, key = [], ""
    with _locked(folder) as lock:
        for stage in stages:
            key = _chained_key(key, stage)
            markers.append(_run_once(stage, key, folder, lock))
    return markers


def minutes(seconds):
    """Time as m:ss."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


@contextlib.contextmanager
def _locked(folder):
    # Commands inherit the lock: one that outlives a killed run still holds it.
    with open(os.path.join(folder, "stages", "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"Another run, or a command it left behind, works in {folder!r}: "
                "wait for it, end it, or choose another folder"
            ) from None
        yield file.fileno()


def _chained_key(previous, stage):
    content = json.dumps([previous, *stage.arguments])
    return hashlib.sha256(content.encode()).hexdigest()


def _run_once(stage, key, folder, lock):
    path = os.path.join(folder, "stages", f"{stage.name}.json")
    marker = _read_marker(path, key)
    print(f"{stage.title:<52}", end="", flush=True)
    if marker["done"]:
        print(f"{minutes(marker['seconds']):>6}  done before", flush=True)
        return marker
    if not (marker["begun"] and stage.resumes):
        if os.path.exists(stage.output) and not os.path.exists(path):
            raise StageError(
                f"{stage.output!r} exists and was not made here: choose another folder"
            )
        _remove(stage.output)
    marker.update(begun=True, command=["python", *stage.arguments])
    _write_marker(path, marker)
    began = time.monotonic()
    log = os.path.join(folder, "logs", f"{stage.name}.txt")
    try:
        _run_command(stage, log, lock)
        marker["done"] = True
    finally:
        marker["seconds"] += time.monotonic() - began
        marker["peak_mib"] = _peak_mib()
        _write_marker(path, marker)
    print(f"{minutes(marker['seconds']):>6}", flush=True)
    return marker


def _read_marker(path, key):
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        marker = json.load(file)
        if marker["key"] == key:
            return marker
    return {"key": key, "begun": False, "done": False, "seconds": 0.0, "peak_mib": 0}


def _write_marker(path, marker):
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(marker, file, indent=2)
    os.replace(f"{path}.new", path)


def _remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.unlink(path)


def _run_command(stage, log, lock):
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *stage.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
        )
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if code != 0:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()[-LOG_LINES_SHOWN:]
        ending = "".join(f"\n    {line}" for line in lines)
        raise StageError(
            f"{stage.name} ended with exit code {code}; the end of {log}:{ending}"
        )


def _stop(process):
    """Asks a command to end, so that it can save; kills it if it does not in time."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
    finally:
        process.kill()
        process.wait()


def _peak_mib():
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)
