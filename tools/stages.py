"""Commands run in rows, each once: interrupted, they go on where they were.

Every stage has a marker, `stages/<name>.json`, that holds its command, its time and
whether it is done. A stage runs again if its command, or one before it, changed.
Nothing here imports TensorFlow, which takes seconds, and prints.
"""

import concurrent.futures
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
import threading
import time

LOG_LINES_SHOWN = 15
STOP_SECONDS = 60
# The environment of rows that run at once: one on each core is faster than one on all.
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


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


def module_stage(name, title, output, module, /, resumes=False, **flags):
    """The `Stage` of `python -m module --flag value ...`."""
    pairs = [(f"--{flag}", str(value)) for flag, value in flags.items()]
    arguments = ("-m", module, *(word for pair in pairs for word in pair))
    return Stage(name, title, arguments, output, resumes)


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
    markers, key = [], ""
    with _locked(folder) as lock:
        for stage in stages:
            key = _chained_key(key, stage)
            print(f"{stage.title:<52}", end="", flush=True)
            marker, was_done = _run_once(stage, key, folder, lock, Running())
            print(_time_told(marker, was_done), flush=True)
            markers.append(marker)
    return markers


def run_chains(chains, folder, num_workers, key="", environment=None):
    """Runs several rows of stages at once; the stages of a row one after the other.

    Args:
        chains: list of lists of `Stage`, each a row. Names differ over all of them.
        folder: str, as `run_stages` takes it.
        num_workers: int. Rows that run at once.
        key: str, of the marker of a stage whose result all rows use: when that is made
            anew, so are they.
        environment: dict of variables that the commands get besides this process's.

    Yields:
        (index, markers) of each row, as soon as it is through. Where the caller stops,
        the generator must be closed: then all that runs is asked to end, once.

    Raises:
        StageError: as `run_stages`, when nothing runs any more.
    """
    running = Running(environment)
    pool = concurrent.futures.ThreadPoolExecutor(num_workers)
    with _locked(folder) as lock, pool:

        def run_chain(stages):
            markers, own_key = [], key
            for stage in stages:
                own_key = _chained_key(own_key, stage)
                marker, was_done = _run_once(stage, own_key, folder, lock, running)
                told = _time_told(marker, was_done)
                print(f"{stage.title:<52}{told}", flush=True)
                markers.append(marker)
            return markers

        futures = []
        try:
            futures += [pool.submit(run_chain, stages) for stages in chains]
            for future in concurrent.futures.as_completed(futures):
                yield futures.index(future), future.result()
        finally:
            running.stop()
            for future in futures:
                future.cancel()


class Running:
    """The commands that run, and whether they are asked to end.

    Args:
        environment: dict of variables that they get besides this process's.
    """

    def __init__(self, environment=None):
        self._environment = {**os.environ, **(environment or {})}
        self._processes = set()
        self._lock = threading.Lock()
        self._is_stopping = False

    def run(self, command, **kwargs):
        """Runs a command to its end; returns its exit code.

        Raises:
            StageError: if it was asked to end: what it did is not all.
        """
        with self._lock:
            if self._is_stopping:
                raise StageError("stopped")
            process = subprocess.Popen(command, env=self._environment, **kwargs)
            self._processes.add(process)
        try:
            code = process.wait()
        except BaseException:
            self.stop()
            raise
        finally:
            self._processes.discard(process)
        if self._is_stopping:
            raise StageError("stopped")
        return code

    def stop(self):
        """Asks the commands to end, so that they can save; kills what does not in time.

        Each is asked once: to a trainer, a second signal means at once.
        """
        with self._lock:
            self._is_stopping = True
            processes = tuple(self._processes)
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        try:
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0, deadline - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
                process.wait()


def minutes(seconds):
    """Time as m:ss."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


@contextlib.contextmanager
def _locked(folder):
    for name in ("stages", "logs"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
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


def _run_once(stage, key, folder, lock, running):
    """(marker, whether the stage was done before)."""
    path = os.path.join(folder, "stages", f"{stage.name}.json")
    marker = _read_marker(path, key)
    if marker["done"]:
        return marker, True
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
        _run_command(stage, log, lock, running)
        marker["done"] = True
    finally:
        marker["seconds"] += time.monotonic() - began
        marker["peak_mib"] = _peak_mib()
        _write_marker(path, marker)
    return marker, False


def _time_told(marker, was_done):
    return f"{minutes(marker['seconds']):>6}{'  done before' if was_done else ''}"


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


def _run_command(stage, log, lock, running):
    with open(log, "wb") as file:
        code = running.run(
            [sys.executable, *stage.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
        )
    if code != 0:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()[-LOG_LINES_SHOWN:]
        ending = "".join(f"\n    {line}" for line in lines)
        raise StageError(
            f"{stage.name} ended with exit code {code}; the end of {log}:{ending}"
        )


def _peak_mib():
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)
