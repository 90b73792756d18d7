"""Files written whole or not at all, and commands whose mistakes are one line."""

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import sys
import tempfile

# Of a KerasHub preset; scores.json is the trainers' own.
PRESET_FILES = re.compile(
    r"assets|model(_\d+)?\.weights\.(h5|json)|task\.weights\.h5"
    r"|(config|metadata|preprocessor|scores|task|tokenizer)\.json"
)


class UsageError(ValueError):
    """A mistake of the caller of a command: told in one line, no traceback."""


# A wrong path of the user; other OSErrors keep their traceback.
_PATH_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are a `UsageError`, so one line without the usage."""

    def error(self, message):
        raise UsageError(message)


def atomic_write(path, data):
    """Writes `data` to `path` under a temporary name, then renames.

    Args:
        path: str. The file to make or replace; its folder must exist.
        data: bytes, or str (written as UTF-8).
    """
    data = data.encode("utf-8") if isinstance(data, str) else data
    folder, name = os.path.split(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path, value):
    """Writes `value` as indented JSON, whole or not at all."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path, open_file=open):
    """The JSON object, a dict, that a file holds.

    Args:
        path: str.
        open_file: callable from path and mode to a file, where `open` does not reach.

    Raises:
        ValueError: if the file holds anything else.
    """
    with open_file(path, "rb") as file:
        try:
            content = json.loads(file.read())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object. Found: {content!r:.40}")
    return content


def read_json_lines(path, key, what):
    """The JSON objects of a file, one a line; none where there is no file.

    Args:
        path: str.
        key: callable from an object to anything; it raises for one that is not valid.
        what: str. What a line must be, for the error.

    Returns:
        list of dict.

    Raises:
        UsageError: if a line is anything else; it names the line.
    """
    if not os.path.exists(path):
        return []
    objects = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                objects.append(json.loads(line))
                key(objects[-1])
            except (ValueError, TypeError, KeyError):
                raise UsageError(
                    f"{path}, line {number}, must be {what}. Found: {line.strip():.60}"
                ) from None
    return objects


def write_json_lines(path, objects):
    """Writes JSON objects, one a line, whole or not at all."""
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in objects]
    atomic_write(path, "".join(lines))


def check_replaceable(path, is_ours):
    """Refuses to replace a folder that holds anything but an earlier result.

    Args:
        path: str. The folder to be; it may be missing.
        is_ours: callable from a name in the folder to bool.

    Raises:
        UsageError: if it is a file, or holds what is not ours.
    """
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise UsageError(f"{path!r} is a file; name a folder")
    strangers = sorted(name for name in os.listdir(path) if not is_ours(name))
    if strangers:
        raise UsageError(
            f"{path!r} would be replaced, and holds {strangers[0]!r}; name another "
            "folder"
        )


@contextlib.contextmanager
def atomic_directory(path):
    """Yields a temporary sibling folder that becomes `path` on success.

    An existing `path` is replaced; on an exception it stays as it was.
    """
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = tempfile.mkdtemp(
        prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path)
    )
    os.chmod(temporary, 0o777 & ~_umask())
    discarded = temporary + ".old"
    try:
        yield temporary
        if os.path.isdir(path):
            # A folder can't be renamed over a full one: step the old one aside.
            os.rename(path, discarded)
        os.rename(temporary, path)
    except BaseException:
        if os.path.isdir(discarded) and not os.path.isdir(path):
            os.rename(discarded, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(discarded, ignore_errors=True)


def recover_directory(path):
    """Puts a folder back that `atomic_directory` was killed in the midst of replacing.

    What it has left beside it is removed.
    """
    path = os.path.realpath(path)
    parent, name = os.path.split(path)
    if not os.path.isdir(parent):
        return
    pattern = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}(\.old)?")
    leftovers = sorted(filter(pattern.fullmatch, os.listdir(parent)))
    for leftover in leftovers:
        full = os.path.join(parent, leftover)
        if leftover.endswith(".old") and not os.path.isdir(path):
            os.rename(full, path)
        else:
            shutil.rmtree(full)


def run_command(main, argv=None):
    """Runs `main(argv)`; a mistake of the user, or a full disk, becomes one line.

    Exit codes: what `main` returns (None: 0), 2 with that line, 130 for Ctrl-C.
    """
    try:
        code = main(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, *_PATH_ERRORS) as error:
        message = " ".join(str(error).split())
        sys.exit(_report(f"error: {message}"))
    except Exception as error:
        if not is_out_of_space(error):
            raise
        message = " ".join(str(error).split())
        sys.exit(_report(f"error: the disk is full: {message}"))
    sys.exit(code or 0)


def is_out_of_space(error):
    """Whether an error tells of a full disk, a quota or a limit of file size."""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return True
    # TensorFlow and h5py tell of the number in words alone.
    return any(os.strerror(number) in str(error) for number in _NO_SPACE)


def _report(line):
    print(line, file=sys.stderr)
    return 2


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
