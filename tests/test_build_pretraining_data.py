"""tools/build_pretraining_data.py: from text to rows."""

import errno
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import tensorflow_datasets as tfds

from deberta_tf import rows
from deberta_tf.files import UsageError, run_command
from deberta_tf.rows import PretrainingRows
from tools import build_pretraining_data as build
from tools import corpus

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
    found = stream_of(tmp_path / "data/train")
    assert sorted(found) == sorted(reference.encode(sorted(set(lines))))
    assert os.listdir(tmp_path / "data") == ["train"]


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


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_files_parts_and_workers_change_no_byte(
    spm_model, sentences, tmp_path, num_workers, monkeypatch
):
    lines = sorted(set(sentences[:300]))
    (tmp_path / "a.txt").write_text("\n".join(lines))
    options = {"document": "line", "held_out_fraction": 0.3, "num_shards": 7}
    run(spm_model, tmp_path / "one", tmp_path / "a.txt", num_workers=1, **options)
    if num_workers == 1:
        monkeypatch.setattr(corpus, "PART_BYTES", 500)
    (tmp_path / "a.txt").write_text("\n".join(lines[::-1]))
    several = {**options, "num_workers": num_workers}
    run(spm_model, tmp_path / "two", tmp_path / "a.txt", **several)
    written = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(written) == 2 + 5 + 2
    for path in written:
        again = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == again.read_bytes()


@pytest.mark.slow
def test_two_processes_share_the_parts(spm_model, sentences, tmp_path):
    # Workers take the length of parts from the module: a file of more than one.
    lines = [f"{line} {number}" for number in range(2500) for line in sentences[:60]]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    assert (tmp_path / "a.txt").stat().st_size > corpus.PART_BYTES
    for workers in (1, 2):
        run(
            spm_model,
            tmp_path / str(workers),
            tmp_path / "a.txt",
            document="line",
            num_workers=workers,
            num_shards=3,
        )
    names = sorted(os.listdir(tmp_path / "1" / "train"))
    assert len(names) == 4
    for name in names:
        one, two = (tmp_path / count / "train" / name for count in "12")
        assert one.read_bytes() == two.read_bytes()


def test_equal_documents_are_kept_once(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text("the film\n\nwas good\n\nthe film")
    (tmp_path / "b.txt").write_text("the film")
    run(spm_model, tmp_path / "data", tmp_path / "?.txt", num_shards=3)
    manifest = PretrainingRows(str(tmp_path / "data/train")).manifest
    assert (manifest["documents"], manifest["duplicates"]) == (2, 2)
    reference = sentencepiece.SentencePieceProcessor(model_file=spm_model)
    found = stream_of(tmp_path / "data/train")
    assert sorted(found) == sorted(reference.encode(["the film", "was good"]))


def test_a_run_tells_what_it_read_and_left_out(spm_model, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"the film was good\n\nit moved me not\n\n\xff")
    (tmp_path / "b.txt").write_text("")
    run(spm_model, tmp_path / "data", tmp_path / "*.txt")
    told = capsys.readouterr().out
    assert re.search(r"train: \d rows of 16 in 1 shard\(s\), 2 documents, ", told)
    assert "of 2 source(s), 1 of them empty; 1 documents are not UTF-8; the " in told
    assert "first left out: a.txt at 36" in told
    assert "MB/s and " in told


@pytest.mark.slow
def test_a_dataset_of_tfds_gives_a_feature(spm_model, sentences, tmp_path, monkeypatch):
    texts = sorted(set(sentences[:40]))
    features = tfds.features.FeaturesDict({"review": tfds.features.Text()})
    tfds.dataset_builders.store_as_tfds_dataset(
        "reviews",
        version="1.0.0",
        features=features,
        split_datasets={
            "train": [(key, {"review": text}) for key, text in enumerate(texts)]
        },
        config="plain",
        data_dir=str(tmp_path / "tfds"),
    )
    monkeypatch.setattr(corpus, "PART_EXAMPLES", 7)
    options = {"data_dir": str(tmp_path / "tfds"), "text_column": "review"}
    run(spm_model, tmp_path / "data", "tfds:reviews/plain:train[:20]", **options)
    reference = sentencepiece.SentencePieceProcessor(model_file=spm_model)
    found = stream_of(tmp_path / "data/train")
    assert len(found) == 20
    assert {*map(tuple, found)} < {*map(tuple, reference.encode(texts))}
    manifest = PretrainingRows(str(tmp_path / "data/train")).manifest
    expected = [{"file": "tfds:reviews/plain:train[:20]", "examples": 20}]
    assert manifest["parameters"]["input"] == expected
    for source, message in [
        ("tfds:reviews/plain:dev", "no split 'dev'"),
        ("tfds:no_such_set:train", "tfds:no_such_set:train"),
    ]:
        with pytest.raises(UsageError, match=message):
            run(spm_model, tmp_path / "other", source, **options)


def test_a_full_disk_leaves_nothing(spm_model, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text("the film was good")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rows, "write_shard", full)
    arguments = ["--tokenizer", spm_model, "--output", str(tmp_path / "data")]
    arguments += ["--input", str(tmp_path / "a.txt")]
    with pytest.raises(SystemExit) as caught:
        run_command(build.main, arguments)
    assert caught.value.code == 2
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("error: ")
    ]
    assert line.startswith("error: the disk is full: [Errno 28] No space left")
    assert len(line) < 300
    assert os.listdir(tmp_path) == ["a.txt"]


def test_flags_of_beam_choose_its_runner(spm_model, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the film was good")
    output = str(tmp_path / "data")
    arguments = ["--tokenizer", spm_model, "--output", output, "--input"]
    arguments += [str(tmp_path / "a.txt"), "--", "--runner=no.such.Runner"]
    with pytest.raises(UsageError, match="flags of Beam .*no.such.Runner"):
        build.main(arguments)
    arguments[-1] = (
        "--runner=apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
    )
    build.main(arguments)
    assert len(stream_of(tmp_path / "data/train")) == 1
    assert "worker(s)" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="--num_workers is for this machine"):
        build.main(["--num_workers=2", *arguments])


def test_rows_are_written_elsewhere_too(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text("the film was good")
    output = f"ram://{tmp_path.name}/rows"
    run(spm_model, output, tmp_path / "a.txt")
    run(spm_model, tmp_path / "data", tmp_path / "a.txt")
    assert stream_of(output + "/train") == stream_of(tmp_path / "data/train")
    PretrainingRows(output + "/train").verify()
    with pytest.raises(UsageError, match="holds files; name another folder"):
        run(spm_model, output, tmp_path / "a.txt")


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
        "text_column": "text",
        "input": [{"file": "a.txt", "bytes": 30}],
        "read": {"bytes": 28},
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
    assert sorted(stream_of(tmp_path / "data/train")) == [[4, 6], [5, 4]]


def test_text_of_blanks_alone_is_refused(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text(" \n\t\n\n")
    with pytest.raises(UsageError, match="no text for train"):
        run(spm_model, tmp_path / "data", tmp_path / "a.txt")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_fraction_that_holds_nothing_out_is_refused(spm_model, tmp_path):
    (tmp_path / "a.txt").write_text("the film was good")
    with pytest.raises(UsageError, match="held_out, with --held_out_fraction 1e-09"):
        run(spm_model, tmp_path / "data", tmp_path / "a.txt", held_out_fraction="1e-09")


def test_text_that_is_not_utf8_at_all_is_refused_by_file(spm_model, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"bad \xff\n")
    message = "no text for train.*1 documents are not UTF-8; the first left out: a.txt"
    with pytest.raises(UsageError, match=message):
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
        ({"num_shards": 0}, "--num_shards must be at least 1; got 0"),
        ({"num_workers": 0}, "--num_workers must be at least 1; got 0"),
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


def test_without_beam_it_says_how_to_install_it():
    program = (
        "import sys; sys.modules['apache_beam'] = None; "
        "import tools.build_pretraining_data"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "pip install -r requirements-beam.txt" in last
