import errno
import json
import os

import pytest

from deberta_tf import files


def test_a_written_file_holds_the_data_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "notes.txt"
    files.atomic_write(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    files.atomic_write(str(path), b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "notes.txt"
    files.atomic_write(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.atomic_write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_written_files_and_folders_obey_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        files.atomic_write(tmp_path / "file", "")
        with files.atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_json_is_written_as_people_read_it(tmp_path):
    path = tmp_path / "values.json"
    files.write_json(path, {"text": "naïve"})
    assert json.loads(path.read_text("utf-8")) == {"text": "naïve"}
    assert "naïve" in path.read_text("utf-8")


def test_json_lines_come_back_and_a_line_that_is_none_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    assert files.read_json_lines(str(path), len, "an object") == []
    files.write_json_lines(str(path), [{"a": "ä"}, {"b": 2}])
    assert path.read_text("utf-8") == '{"a": "ä"}\n{"b": 2}\n'
    assert files.read_json_lines(str(path), len, "an object") == [{"a": "ä"}, {"b": 2}]
    with pytest.raises(files.UsageError, match="a.jsonl, line 2, must be an a. Found"):
        files.read_json_lines(str(path), lambda one: one["a"], "an a")


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    with files.atomic_directory(path) as temporary:
        files.atomic_write(os.path.join(temporary, "a"), "1")
        assert not path.exists()
    assert os.listdir(path) == ["a"]
    assert os.listdir(tmp_path / "new") == ["folder"]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with files.atomic_directory(path) as temporary:
            files.atomic_write(os.path.join(temporary, name), "")
    assert os.listdir(path) == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_failure_keeps_the_old_folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError, match="half"):
        with files.atomic_directory(path) as temporary:
            files.atomic_write(os.path.join(temporary, "new"), "")
            raise RuntimeError("half")
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    rename = os.rename

    def fail_into_place(source, target):
        if str(target) == str(path) and not str(source).endswith(".old"):
            raise OSError("no space")
        rename(source, target)

    with pytest.raises(OSError, match="no space"), files.atomic_directory(path):
        monkeypatch.setattr(os, "rename", fail_into_place)
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


def exit_code(main):
    with pytest.raises(SystemExit) as exit_:
        files.run_command(main)
    return exit_.value.code


@pytest.mark.parametrize(
    "error",
    [
        files.UsageError("steps must be positive.\n  Received: steps=0"),
        ValueError("steps must be positive.\nReceived: steps=0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(error, capsys):
    def main(argv):
        raise error

    assert exit_code(main) == 2
    message = "error: steps must be positive. Received: steps=0\n"
    assert capsys.readouterr() == ("", message)


def test_a_missing_file_is_named_in_one_line(capsys):
    assert exit_code(lambda argv: open("no/such/file")) == 2
    assert "'no/such/file'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "preset/model.h5"),
        # As h5py tells of it.
        OSError(
            "Can't flush file (errno = 28, error message = 'No space left on device')"
        ),
    ],
)
def test_a_full_disk_is_one_line_and_exit_code_2(error, capsys):
    def main(argv):
        raise error

    assert exit_code(main) == 2
    assert capsys.readouterr() == ("", f"error: the disk is full: {error}\n")


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        files.run_command(lambda argv: 1 / 0)


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert exit_code(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_command_exits_with_what_main_returns():
    assert exit_code(lambda argv: None) == 0
    assert exit_code(lambda argv: 3) == 3
