"""tools/build_pretraining_data.py: from text files to rows."""

import itertools
import json
import os

import numpy as np
import pytest
import sentencepiece

from deberta_tf.files import UsageError, run_command
from deberta_tf.rows import PretrainingRows
from tools import build_pretraining_data as build

PAD, CLS, SEP = 0, 1, 2


@pytest.fixture
def spm_model(sentencepiece_proto, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "spm.model"
    path.write_bytes(sentencepiece_proto)
    return str(path)


def run(spm_model, output, *inputs, **options):
    arguments = ["--tokenizer", spm_model, "--output", str(output), "--input"]
    arguments += map(str, inputs)
    for name, value in {"sequence_length": 16, **options}.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    build.main(arguments)


def stream_of(directory):
    """All documents of a folder of rows, as lists of ids."""
    reader = PretrainingRows(str(directory))
    stream = reader.take(range(len(reader)))[:, 1:-1].reshape(-1).tolist()
    is_end = itertools.groupby(stream, lambda token_id: token_id in (PAD, SEP))
    return [list(ids) for end, ids in is_end if not end]


def test_rows_hold_what_sentencepiece_gives_for_each_document(
    spm_model, sentences, tmp_path
):
    lines = sentences[:200]
    (tmp_path / "a.txt").write_text("\n\n".join(lines[:150]))
    (tmp_path / "b.txt").write_text("\n \n\n" + "\r\n\r\n".join(lines[150:]) + "\n")
    run(spm_model, tmp_path / "data", tmp_path / "*.txt")
    reference = sentencepiece.SentencePieceProcessor(model_file=spm_model)
    assert stream_of(tmp_path / "data/train") == reference.encode(lines)
    assert os.listdir(tmp_path / "data") == ["train"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [("block", ["one\ntwo", "three"]), ("line", ["one", "two", "three"])],
)
def test_a_document_is_a_block_or_a_line(tmp_path, document, expected):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\n\none\r\ntwo\n\t\nthree")
    documents = list(build.read_documents(str(tmp_path / "a.txt"), document))
    assert documents == expected


def test_a_block_without_end_is_cut_into_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_LONGEST_DOCUMENT", 6)
    (tmp_path / "a.txt").write_text("abc\nabc\nabc\nabcdefgh\nabc\n")
    documents = list(build.read_documents(str(tmp_path / "a.txt"), "block"))
    assert documents == ["abc\nabc", "abc\nabcdefgh", "abc"]


def test_documents_longer_than_a_batch_keep_their_order(
    spm_model, sentences, tmp_path, monkeypatch
):
    (tmp_path / "a.txt").write_text("\n".join(sentences[:60]))
    run(spm_model, tmp_path / "one", tmp_path / "a.txt", document="line")
    monkeypatch.setattr(build, "_BATCH_CHARACTERS", 40)
    run(spm_model, tmp_path / "many", tmp_path / "a.txt", document="line")
    assert stream_of(tmp_path / "one/train") == stream_of(tmp_path / "many/train")


def test_held_out_documents_and_training_documents_are_all_and_disjoint(
    spm_model, sentences, tmp_path
):
    lines = sorted(set(sentences))
    # Each text twice: copies must go to one side.
    (tmp_path / "a.txt").write_text("\n".join(lines + lines))
    options = {"document": "line", "held_out_fraction": 0.25}
    run(spm_model, tmp_path / "data", tmp_path / "a.txt", **options)
    train, held_out = (
        set(map(tuple, stream_of(tmp_path / "data" / split)))
        for split in ("train", "held_out")
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=spm_model)
    assert not train & held_out
    assert train | held_out == set(map(tuple, reference.encode(lines)))
    # Five standard deviations of a binomial.
    spread = np.sqrt(len(lines) * 0.25 * 0.75)
    assert abs(len(held_out) - 0.25 * len(lines)) < 5 * spread


def test_the_same_command_writes_the_same_bytes(spm_model, sentences, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(sentences[:100]))
    options = {"document": "line", "held_out_fraction": 0.3, "rows_per_shard": 7}
    for name in ("first", "second"):
        run(spm_model, tmp_path / name, tmp_path / "a.txt", **options)
    written = [path for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert len(written) > 4
    for path in written:
        again = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert path.read_bytes() == again.read_bytes()


def test_a_long_run_tells_how_far_it_is(spm_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "_PROGRESS_SECONDS", 0)
    (tmp_path / "a.txt").write_text("the film was good\n\nit moved me not")
    run(spm_model, tmp_path / "data", tmp_path / "a.txt")
    told = capsys.readouterr()
    assert "train: 2 documents, " in told.err
    assert "train: 2 rows of 16 in 1 shard(s), 2 documents, " in told.out


def test_the_manifest_tells_what_the_rows_were_made_of(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text("the film\nwas good\n\nit moved me")
    run(spm_model, tmp_path / "data", tmp_path / "a.txt")
    manifest = PretrainingRows(str(tmp_path / "data/train")).manifest
    assert manifest["documents"] == 2
    assert manifest["tokenizer"]["vocabulary_size"] == 101  # [MASK] comes on top
    assert manifest["parameters"] == {
        "split": "train",
        "held_out_fraction": 0.0,
        "document": "block",
        "input": [{"file": "a.txt", "bytes": 30}],
    }
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_folder_holding_the_vocabulary_serves_as_tokenizer(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text("the film was good")
    run(os.path.dirname(spm_model), tmp_path / "folder", tmp_path / "a.txt")
    run(spm_model, tmp_path / "file", tmp_path / "a.txt")
    assert stream_of(tmp_path / "folder/train") == stream_of(tmp_path / "file/train")


def test_byte_pair_vocabularies_serve_as_well(tmp_path):
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "ab", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "a.txt").write_text("aab\n\nba")
    run(str(tmp_path), tmp_path / "data", tmp_path / "a.txt")
    assert stream_of(tmp_path / "data/train") == [[4, 6], [5, 4]]


def test_inputs_are_sorted_within_a_pattern_and_come_once(tmp_path):
    for name in ("b.txt", "a.txt", "[1].txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.txt").write_text("")
    patterns = [str(tmp_path / name) for name in ("[1].txt", "*.txt", "b.txt")]
    names = [os.path.basename(path) for path in build.input_files(patterns)]
    assert names == ["[1].txt", "a.txt", "b.txt"]


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
        build.input_files([str(tmp_path / name)])
    assert name in str(caught.value)


def test_text_of_blanks_alone_is_refused(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text(" \n\t\n\n")
    with pytest.raises(UsageError, match="no text for train"):
        run(spm_model, tmp_path / "data", tmp_path / "a.txt")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_fraction_that_holds_nothing_out_is_refused(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text("the film was good")
    with pytest.raises(UsageError, match="held_out, with --held_out_fraction 1e-09"):
        run(spm_model, tmp_path / "data", tmp_path / "a.txt", held_out_fraction="1e-09")


def test_bytes_that_are_not_utf8_are_refused_by_file_and_offset(spm_model, tmp_path):
    (tmp_path / "a.txt").write_bytes("é good\n".encode() + b"bad \xff\n")
    with pytest.raises(UsageError, match=r"a\.txt is not UTF-8 at byte 12"):
        run(spm_model, tmp_path / "data", tmp_path / "a.txt")
    assert not (tmp_path / "data").exists()


def test_an_output_that_exists_is_replaced_only_on_demand(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text("the film was good")
    run(spm_model, tmp_path / "data", tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("it moved me not")
    with pytest.raises(UsageError, match="data exists; --overwrite replaces it"):
        run(spm_model, tmp_path / "data", tmp_path / "a.txt")
    run(spm_model, tmp_path / "data", tmp_path / "a.txt", overwrite=True)
    reference = sentencepiece.SentencePieceProcessor(model_file=spm_model)
    assert stream_of(tmp_path / "data/train") == [reference.encode("it moved me not")]


def test_a_folder_of_other_things_is_never_overwritten(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text("the film was good")
    with pytest.raises(UsageError, match=r"would be replaced, and holds 'a\.txt'"):
        run(spm_model, tmp_path, tmp_path / "a.txt", overwrite=True)
    assert (tmp_path / "a.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 7}, "--sequence_length must be at least 8; got 7"),
        ({"rows_per_shard": 0}, "--rows_per_shard must be at least 1; got 0"),
        ({"held_out_fraction": 1.0}, "below 1; got 1.0"),
        ({"held_out_fraction": "nan"}, "below 1; got nan"),
    ],
)
def test_wrong_options_are_refused_by_name(spm_model, tmp_path, options, message):
    (tmp_path / "a.txt").write_text("the film was good")
    with pytest.raises(UsageError, match=message):
        run(spm_model, tmp_path / "data", tmp_path / "a.txt", **options)


def test_a_tokenizer_that_is_none_is_one_line_on_stderr(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the film was good")
    for name, message in (("a.txt", "not a SentencePiece model"), ("b", "no file")):
        arguments = ["--tokenizer", str(tmp_path / name), "--input"]
        arguments += [str(tmp_path / "a.txt"), "--output", str(tmp_path / "data")]
        with pytest.raises(SystemExit) as caught:
            run_command(build.main, arguments)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert (caught.value.code, line.startswith("error: ")) == (2, True)
        assert message in line
