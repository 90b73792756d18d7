"""tools/corpus.py: which documents the parts of files hold."""

import os
import random

import pytest
import tensorflow as tf

from deberta_tf.files import UsageError
from tools import corpus


def read(path, document="line", part_bytes=2**22, longest=None, text_column="text"):
    """All documents of a file, part by part, and what was counted."""
    counts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PART_BYTES", part_bytes)
        if longest is not None:
            patch.setattr(corpus, "LONGEST_TEXT", longest)
        parts, _ = corpus.parts_of([str(path)])
        documents = [
            text
            for part in parts
            for text in corpus.read_part(part, document, text_column, counts)
        ]
    return documents, counts


@pytest.mark.parametrize("part_bytes", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("document", "expected"),
    [("block", ["one\ntwo", "three", "é"]), ("line", ["one", "two", "three", "é"])],
)
def test_a_document_is_a_block_or_a_line(tmp_path, document, expected, part_bytes):
    text = "\ufeff\n\none\r\ntwo\n\t\n\u3000\nthree\n \r\né"
    (tmp_path / "a.txt").write_bytes(text.encode())
    documents, counts = read(tmp_path / "a.txt", document, part_bytes)
    assert documents == expected
    assert counts == {"bytes": sum(len(one.encode()) for one in expected)}


@pytest.mark.parametrize("document", ["block", "line"])
def test_the_parts_of_a_file_hold_each_document_once(tmp_path, document):
    rng = random.Random(5)
    pieces = ["a", "b b", "é", "", "", " ", "\t", "\r", "漢字 x"]
    for number in range(30):
        text = "\n".join(rng.choices(pieces, k=40))
        path = tmp_path / f"{number}.txt"
        path.write_bytes(text.encode())
        whole, _ = read(path, document)
        for part_bytes in (1, 4, 9, 33):
            assert read(path, document, part_bytes)[0] == whole


def test_a_block_without_end_is_cut_into_documents(tmp_path):
    (tmp_path / "a.txt").write_text("abc\nabc\nabc\nabcde\nabc\n")
    documents, _ = read(tmp_path / "a.txt", "block", longest=6)
    assert documents == ["abc\nab", "c", "abc\nab", "cde", "abc"]


@pytest.mark.parametrize("part_bytes", [3, 1000])
def test_a_giant_line_is_cut_between_characters_and_counted(tmp_path, part_bytes):
    (tmp_path / "a.txt").write_text("漢字漢字x\nab\n", encoding="utf-8")
    documents, counts = read(tmp_path / "a.txt", "line", part_bytes, longest=4)
    assert documents == ["漢字", "漢字", "x", "ab"]
    assert counts == {"bytes": 15, "cut": 3}


def test_what_is_not_utf8_is_left_out_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes("é good\n\n".encode() + b"bad \xff\nx\n\nfine")
    documents, counts = read(tmp_path / "a.txt", "block")
    assert documents == ["é good", "fine"]
    place = ["a.txt", 13, "not_utf8"]
    assert counts == {"bytes": 11, "not_utf8": 1, "first_left_out": place}


@pytest.mark.parametrize("part_bytes", [5, 1000])
def test_json_lines_give_a_field(tmp_path, part_bytes):
    lines = ['{"body": "one\\ntwo"}', "", '{"text": "x"}', '{"body": 3}', "{", "[1]"]
    lines += ['{"body": "\\ud800"}', '{"body": "three"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents, counts = read(tmp_path / "a.jsonl", "line", part_bytes, None, "body")
    assert documents == ["one\ntwo", "three"]
    first = counts.pop("first_left_out")
    assert first == ["a.jsonl", len(lines[0]) + 2, "no_text"]
    assert counts == {"bytes": 12, "no_text": 4, "not_utf8": 1}


def test_files_elsewhere_are_read_like_those_on_disk(tmp_path):
    text = "one two\n\nthree\nfour\n\n" + "x" * 50 + "\n"
    (tmp_path / "a.txt").write_text(text)
    elsewhere = f"ram://{tmp_path.name}/a.txt"
    with tf.io.gfile.GFile(elsewhere, "w") as file:
        file.write(text)
    for part_bytes in (4, 1000):
        found = read(elsewhere, "block", part_bytes)
        assert found == read(tmp_path / "a.txt", "block", part_bytes)
    assert len(found[0]) == 3


def test_inputs_are_sorted_within_a_pattern_and_come_once(tmp_path):
    for name in ("b.txt", "a.txt", "[1].txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.txt").write_text("")
    patterns = [str(tmp_path / name) for name in ("[1].txt", "*.txt", "b.txt")]
    parts, facts = corpus.parts_of(patterns)
    names = [os.path.basename(part.source) for part in parts]
    assert names == ["[1].txt", "a.txt", "b.txt"]
    assert [fact["bytes"] for fact in facts] == [4, 4, 4, 0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.txt", "no file"),
        ("*.csv", "no file"),
        ("empty.txt", "is empty"),
        ("folder", r"is a folder; name its files: .*\*\.txt"),
    ],
)
def test_an_input_that_gives_no_text_is_named(tmp_path, name, message):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=message) as caught:
        corpus.parts_of([str(tmp_path / name)])
    assert name in str(caught.value)
