"""Rows of token ids on disk: how they are cut, written, read and refused."""

import hashlib
import json
import os
import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf import rows

PAD, CLS, SEP = 0, 1, 2
TOKENIZER = types.SimpleNamespace(
    cls_token_id=CLS,
    sep_token_id=SEP,
    pad_token_id=PAD,
    unk_token_id=3,
    mask_token_id=999,
    vocabulary_size=lambda: 1000,
    fingerprint=lambda: "f00d",
)


def pack(documents, sequence_length=8):
    arrays = [np.array(document, "int32") for document in documents]
    return list(rows.pack_rows(arrays, TOKENIZER, sequence_length))


def random_documents(num_documents, longest, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(4, 999, rng.integers(0, longest + 1)) for _ in range(num_documents)
    ]


def write(directory, num_rows, rows_per_shard=65536, sequence_length=8):
    """Writes rows whose tokens count up; returns them."""
    made = np.arange(num_rows * sequence_length) % 900 + 4
    made = made.reshape(num_rows, sequence_length)
    rows.write_rows(str(directory), [made], TOKENIZER, rows_per_shard)
    return made


def edit_manifest(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_documents_are_one_stream_with_a_separator_between_them():
    packed = np.concatenate(pack([[10, 11, 12], [], [13, 14, 15, 16, 17], [18]]))
    expected = [
        [CLS, 10, 11, 12, SEP, 13, 14, SEP],
        [CLS, 15, 16, 17, SEP, 18, SEP, PAD],
    ]
    np.testing.assert_array_equal(packed, expected)
    assert packed.dtype == np.dtype("<u4")


def test_a_document_that_fills_its_row_leaves_no_padding():
    np.testing.assert_array_equal(
        np.concatenate(pack([[10, 11, 12, 13, 14, 15]])),
        [[CLS, 10, 11, 12, 13, 14, 15, SEP]],
    )


@pytest.mark.parametrize("longest", [3, 40, 200])
def test_no_token_is_lost_or_moved(longest):
    documents = random_documents(50, longest)
    packed = np.concatenate(pack(documents, 16))
    stream = []
    for document in documents:
        stream += [SEP] * bool(stream and len(document)) + document.tolist()
    found = packed[:, 1:-1].reshape(-1).tolist()
    assert found[: len(stream)] == stream
    assert set(found[len(stream) :]) <= {SEP, PAD}
    assert np.all(packed[:, 0] == CLS)
    assert np.all(packed[:-1, -1] == SEP)


def test_no_document_gives_no_row():
    assert pack([]) == pack([[], []]) == []


def test_rows_too_short_are_refused_at_once():
    with pytest.raises(ValueError, match="sequence_length=7"):
        rows.pack_rows([], TOKENIZER, 7)


def test_rows_come_back_in_the_order_asked_for_across_shards(tmp_path):
    made = write(tmp_path / "data", 23, rows_per_shard=5)
    reader = rows.PretrainingRows(str(tmp_path / "data"))
    indices = np.random.default_rng(0).integers(0, 23, 60)
    taken = reader.take(indices)
    np.testing.assert_array_equal(taken, made[indices])
    assert (taken.dtype, len(reader), reader.sequence_length) == (np.uint32, 23, 8)
    assert reader.take([]).shape == (0, 8)


def test_the_manifest_counts_what_the_documents_hold(tmp_path):
    documents = [d for d in random_documents(40, 30) if len(d)]
    packed = rows.pack_rows(documents, TOKENIZER, 16)
    manifest = rows.write_rows(
        str(tmp_path / "data"), packed, TOKENIZER, 4, {"document": "line"}
    )
    assert manifest["documents"] == len(documents)
    assert manifest["tokens"] == sum(map(len, documents))
    assert manifest["rows"] == sum(shard["rows"] for shard in manifest["shards"])
    assert manifest["tokenizer"]["fingerprint"] == "f00d"
    assert manifest["tokenizer"]["special_token_ids"]["mask"] == 999
    assert manifest["parameters"] == {"document": "line"}
    assert json.loads((tmp_path / "data/manifest.json").read_text()) == manifest


def test_shards_are_plain_npy_of_little_endian_uint32_with_their_hash(tmp_path):
    made = write(tmp_path / "data", 7, rows_per_shard=3)
    reader = rows.PretrainingRows(str(tmp_path / "data"))
    shards = reader.manifest["shards"]
    assert [shard["file"] for shard in shards] == [
        f"rows-0000{number}-of-00003.npy" for number in range(3)
    ]
    for number, shard in enumerate(shards):
        content = (tmp_path / "data" / shard["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        array = np.load(tmp_path / "data" / shard["file"])
        assert array.dtype.str == "<u4"
        np.testing.assert_array_equal(array, made[3 * number : 3 * number + 3])
    reader.verify()


def test_shards_do_not_hang_on_how_rows_arrive(tmp_path):
    made = write(tmp_path / "once", 20, rows_per_shard=6)
    pieces = np.split(made, [1, 2, 9])
    pieces.append(made[0][:0].reshape(0, 8))
    rows.write_rows(str(tmp_path / "pieces"), pieces, TOKENIZER, 6)
    for name in sorted(os.listdir(tmp_path / "once")):
        once, again = tmp_path / "once" / name, tmp_path / "pieces" / name
        assert once.read_bytes() == again.read_bytes()


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path):
    def failing():
        yield np.full((4, 8), 5)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        rows.write_rows(str(tmp_path / "data"), failing(), TOKENIZER, 2)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "rows must hold one row at least"),
        ([np.ones((1, 8)), np.ones((1, 9))], "lengths: 8 and 9"),
        ([np.full((1, 8), 1000)], "from 1000 to 1000"),
        ([np.full((1, 8), -1)], "from -1 to -1"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, made, message):
    with pytest.raises(ValueError, match=message):
        rows.write_rows(str(tmp_path / "data"), made, TOKENIZER)


def test_shards_of_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rows_per_shard=0"):
        rows.write_rows(str(tmp_path / "data"), [np.ones((1, 8))], TOKENIZER, 0)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_row_that_is_not_there_is_refused_by_number(tmp_path, index):
    write(tmp_path / "data", 3)
    with pytest.raises(ValueError, match=rf"\[0, 3\).*Received: {index}"):
        rows.PretrainingRows(str(tmp_path / "data")).take([0, index])


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        rows.PretrainingRows(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"version 1\. Found: .*version 2"),
        ({"format": "text"}, "Found: format 'text'"),
        ({"sequence_length": 16}, r"shape \(3, 16\).*Found: <u4 of shape \(3, 8\)"),
    ],
)
def test_a_manifest_of_another_format_is_refused(tmp_path, changes, message):
    write(tmp_path / "data", 3)
    edit_manifest(tmp_path / "data", **changes)
    with pytest.raises(ValueError, match=message):
        rows.PretrainingRows(str(tmp_path / "data"))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        rows.PretrainingRows(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path / "data", 3, rows_per_shard=2)
    os.unlink(tmp_path / "data/rows-00001-of-00002.npy")
    with pytest.raises(FileNotFoundError, match=r"rows-00001-of-00002\.npy"):
        rows.PretrainingRows(str(tmp_path / "data"))


@pytest.mark.parametrize("size", [0, 40, 150])
def test_a_shard_cut_short_is_named(tmp_path, size):
    write(tmp_path / "data", 3)
    os.truncate(tmp_path / "data/rows-00000-of-00001.npy", size)
    with pytest.raises(ValueError, match="rows-00000-of-00001.npy is not a whole"):
        rows.PretrainingRows(str(tmp_path / "data"))


def test_a_shard_of_another_type_is_named_with_what_it_holds(tmp_path):
    made = write(tmp_path / "data", 3)
    np.save(tmp_path / "data/rows-00000-of-00001.npy", made.astype("int64"))
    with pytest.raises(ValueError, match=r"must hold <u4 .* Found: <i8"):
        rows.PretrainingRows(str(tmp_path / "data"))


def test_a_changed_shard_is_found_by_its_hash(tmp_path):
    made = write(tmp_path / "data", 3)
    np.save(tmp_path / "data/rows-00000-of-00001.npy", (made + 1).astype("<u4"))
    reader = rows.PretrainingRows(str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"rows-00000-of-00001\.npy has SHA-256"):
        reader.verify()


def test_another_tokenizer_is_refused_with_both_fingerprints(tmp_path):
    write(tmp_path / "data", 3)
    reader = rows.PretrainingRows(str(tmp_path / "data"))
    reader.check_tokenizer("f00d")
    with pytest.raises(ValueError, match="tokenizer f00d; this one is beef"):
        reader.check_tokenizer("beef")


@pytest.fixture
def elsewhere(tmp_path):
    """Rows in TensorFlow's file system in memory, and on disk: (there, here)."""
    write(tmp_path / "here", 23, rows_per_shard=10)
    there = f"ram://{tmp_path.name}/rows"
    tf.io.gfile.makedirs(there)
    for path in (tmp_path / "here").iterdir():
        tf.io.gfile.copy(str(path), f"{there}/{path.name}", overwrite=True)
    return there, str(tmp_path / "here")


def test_rows_elsewhere_are_those_on_disk(elsewhere):
    there, here = map(rows.PretrainingRows, elsewhere)
    assert len(there) == len(here) == 23
    for indices in ([0], [22, 3, 3, 10, 9], range(23)):
        np.testing.assert_array_equal(there.take(indices), here.take(indices))
    assert there.take([1]).dtype == np.uint32
    there.check_tokenizer("f00d")


def test_a_shard_elsewhere_that_is_cut_short_is_named(elsewhere):
    there, here = elsewhere
    name = "rows-00001-of-00003.npy"
    whole = (pathlib.Path(here) / name).read_bytes()
    for length in (40, len(whole) - 1):
        with tf.io.gfile.GFile(f"{there}/{name}", "wb") as file:
            file.write(whole[:length])
        with pytest.raises(ValueError, match=f"{name} is not a whole .npy file"):
            rows.PretrainingRows(there)
    with pytest.raises(FileNotFoundError, match=r"ram://nowhere has no manifest\.json"):
        rows.PretrainingRows("ram://nowhere")
