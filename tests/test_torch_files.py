"""Files of PyTorch, without PyTorch, and without running what is in them."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from deberta_tf.byte_pair import read_bpe_encoder
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.tokenizers import DebertaBytePairTokenizer, DebertaTokenizer
from deberta_tf.torch_files import StoredTensor, read_torch_file
from tests.foreign_folders import read_folder

FORMATS = ("zip.bin", "legacy.bin")


@pytest.fixture
def files(golden):
    return golden / "torch_files"


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_of_every_layout_and_dtype_are_read(files, name):
    content = read_torch_file(str(files / name))
    expected = np.load(files / "expected.npz")
    tensors = {k: v for k, v in content.items() if isinstance(v, StoredTensor)}
    assert tensors.keys() == set(expected.files)
    for key, tensor in tensors.items():
        value = tensor.read()
        assert (value.shape, value.dtype) == (tensor.shape, tensor.dtype)
        assert value.dtype.name == (
            "bfloat16" if key == "bfloat" else expected[key].dtype.name
        )
        np.testing.assert_array_equal(value.astype(expected[key].dtype), expected[key])
    assert content["config"] == {"hidden_size": 3}


def test_an_official_file_holds_what_its_safetensors_hold(golden):
    folder = golden / "golden/D2_off_v1_mlm_emd"
    content = read_torch_file(str(folder / "pytorch_model.bin"))
    _, tensors = read_folder(folder)
    assert content.keys() == tensors.keys()
    for name, value in tensors.items():
        assert content[name].read().tobytes() == value.tobytes()


def test_a_model_loads_from_an_official_file(golden, tmp_path):
    source = golden / "golden/D2_off_v1_mlm_emd"
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(source / name, tmp_path)
    masked_lm = DebertaMaskedLM.from_preset(str(tmp_path))
    other = DebertaMaskedLM.from_preset(str(source))
    for weight, twin in zip(masked_lm.weights, other.weights, strict=True):
        np.testing.assert_array_equal(weight, twin)


class Call:
    """Pickles to a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def named(module, name, protocol=2):
    """A pickle that calls module.name("touch ..."), without importing it."""
    if protocol < 4:
        head = f"c{module}\n{name}\n".encode()
    else:
        texts = (f"\x8c{chr(len(t))}{t}".encode("latin-1") for t in (module, name))
        head = b"\x80\x04" + b"".join(texts) + b"\x93"
    return head + b"(X\x05\x00\x00\x00touchtR."


def old_style(module, name):
    """The same by the INST opcode."""
    return f"(X\x05\x00\x00\x00touchi{module}\n{name}\n.".encode()


def as_zip(path, pickled, records=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in records:
            archive.writestr(f"archive/{name}", content)
    return str(path)


def as_legacy(path, pickled):
    path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickled
    )
    return str(path)


@pytest.mark.parametrize(
    "pickled",
    [
        named("os", "system"),
        named("os", "system", protocol=4),
        named("posix", "system"),
        named("builtins", "eval"),
        named("builtins", "getattr"),
        named("torch", "load"),
        named("torch.serialization", "load"),
        named("torch._utils", "__builtins__.eval", protocol=4),
        named("collections", "OrderedDict.__init__", protocol=4),
        old_style("os", "system"),
    ],
)
@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_every_other_global_is_refused_by_name(tmp_path, pickled, write):
    path = write(tmp_path / "evil.bin", pickled)
    with pytest.raises(ValueError, match="nothing of the file was executed") as error:
        read_torch_file(path)
    assert "evil.bin names " in str(error.value)


def test_a_command_in_a_file_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    evil = {"a.weight": Call(os.system, f"touch {marker}")}
    path = as_zip(tmp_path / "evil.bin", pickle.dumps(evil, 2))
    with pytest.raises(ValueError, match=r"names (posix|nt).system"):
        read_torch_file(path)
    assert not marker.exists()
    # The same file does harm where nothing is refused.
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("archive/data.pkl"))
    assert marker.exists()


def test_a_file_can_not_alter_what_reads_the_next_one(tmp_path, files):
    # BUILD gives the rebuilding function itself another state, in both forms.
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for state in (
        b"}X\x01\x00\x00\x00aK\x01s",
        b"N}X\x08\x00\x00\x00__call__K\x01s\x86",
    ):
        path = as_zip(tmp_path / "evil.bin", function + state + b"b.")
        with pytest.raises(ValueError, match="no whole file of torch.save"):
            read_torch_file(path)
    assert "dense" in read_torch_file(str(files / "zip.bin"))


def tensor_pickle(count=4, offset=0, shape=(2, 2), strides=(2, 1), kind="storage"):
    """A pickle of {"a": tensor}, opcode by opcode as `torch.save` writes it."""
    numbers = ["".join(f"I{number}\n" for number in each) for each in (shape, strides)]
    storage = f"(S'{kind}'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\ntQ"
    return (
        f"(dS'a'\nctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n"
        f"({numbers[0]}t({numbers[1]}tI00\n(dtRs."
    ).encode()


def four_floats(path, **changes):
    data = np.arange(4, dtype="<f4").tobytes()
    return as_zip(path, tensor_pickle(**changes), [("data/0", data)])


def test_a_tensor_written_by_hand_is_read(tmp_path):
    path = four_floats(tmp_path / "hand.bin")
    np.testing.assert_array_equal(read_torch_file(path)["a"].read(), [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, "ends at element 5 of a storage of 4"),
        ({"shape": (3, 2)}, "ends at element 6 of a storage of 4"),
        ({"strides": (4, 1)}, "ends at element 6 of a storage of 4"),
        ({"strides": (-1, 1)}, "negative size"),
        ({"shape": (2,)}, r"no tensor of shape \(2,\)"),
        ({"count": 5}, "has 16 bytes, not 5 of float32"),
        ({"count": 10**15}, "has 16 bytes, not 1000000000000000"),
        ({"kind": "module"}, "unknown reference"),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, changes, message):
    path = four_floats(tmp_path / "hand.bin", **changes)
    with pytest.raises(ValueError, match=f"hand.bin is no whole file.*{message}"):
        read_torch_file(path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused_by_name(files, tmp_path, name, kept):
    whole = (files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=f"{name} is no whole file of torch.save"):
        read_torch_file(str(path))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"\x80\x02]q."])
def test_what_torch_did_not_write_is_refused(tmp_path, content):
    (tmp_path / "other.bin").write_bytes(content)
    with pytest.raises(ValueError, match="other.bin is no whole file of torch.save"):
        read_torch_file(str(tmp_path / "other.bin"))


def test_big_endian_files_are_refused(tmp_path):
    records = [("data/0", bytes(16)), ("byteorder", b"big")]
    path = as_zip(tmp_path / "big.bin", tensor_pickle(), records)
    with pytest.raises(ValueError, match="only little-endian"):
        read_torch_file(path)


def test_the_official_vocabulary_gets_the_official_ids(files):
    vocabulary, merges = read_bpe_encoder(str(files / "bpe_encoder.bin"))
    # dict_map begins with GPT-2's ids 10, 6, 1; the one that comes twice counts once.
    assert list(vocabulary)[:7] == [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        "Ġthe",
        "e",
        "a",
    ]
    assert list(vocabulary)[-2:] == ["madeupword0000", "[MASK]"]
    assert list(vocabulary.values()) == list(range(18))
    assert merges == ["Ġ t", "h e", "Ġt he"]


def test_a_folder_with_the_official_vocabulary_tokenizes(files, tmp_path):
    shutil.copy(files / "bpe_encoder.bin", tmp_path)
    tokenizer = DebertaTokenizer.from_preset(str(tmp_path))
    assert isinstance(tokenizer, DebertaBytePairTokenizer)
    # t, he, Ġthe, Ġ, c, a, b, !
    assert tokenizer("the the cab!").numpy().tolist() == [7, 11, 4, 12, 14, 6, 13, 8]
    assert tokenizer.mask_token_id == 17


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a dict as 'encoder'"),
        ({"encoder": {"a": 0}, "vocab": []}, "must hold a list as 'dict_map'"),
        (
            {"encoder": {"a": 0}, "vocab": [], "dict_map": [("7", 1)]},
            "names id 7, which encoder does not have",
        ),
        ({"encoder": {"a": 0}, "vocab": [], "dict_map": ["7"]}, "must hold pairs"),
    ],
)
def test_an_official_vocabulary_without_sense_is_refused(tmp_path, content, message):
    path = as_zip(tmp_path / "bpe_encoder.bin", pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=f"bpe_encoder.bin.*{message}"):
        read_bpe_encoder(path)


def test_an_official_vocabulary_runs_nothing(tmp_path):
    path = as_zip(tmp_path / "bpe_encoder.bin", named("os", "system"))
    with pytest.raises(ValueError, match="names os.system"):
        read_bpe_encoder(path)
