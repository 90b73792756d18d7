"""Files of PyTorch, without PyTorch, and without running what is in them."""

import copyreg
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest

from deberta_tf.masked_lm import DebertaMaskedLM
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


def by_object(module, name):
    """The same by the OBJ opcode."""
    return f"(c{module}\n{name}\nX\x05\x00\x00\x00toucho.".encode()


def as_zip(path, pickled, records=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
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
        by_object("os", "system"),
        named("_codecs", "encode"),
        named("torch._utils", "_rebuild_tensor_v2.__globals__", protocol=4),
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


STORAGE_TYPE = b"ctorch\nFloatStorage\n"
STORAGE = b"(S'storage'\n" + STORAGE_TYPE + b"S'0'\nS'cpu'\nI4\ntQ"


@pytest.mark.parametrize(
    "target",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        STORAGE_TYPE,
        STORAGE,
        b"ctorch._utils\n_rebuild_tensor\n(" + STORAGE + b"I0\n(t(ttR",
    ],
)
@pytest.mark.parametrize(
    "state",
    [
        b"}X\x01\x00\x00\x00aK\x01s",
        b"N}X\x08\x00\x00\x00__call__K\x01s\x86",
        # What the __setstate__ of a dataclass with slots takes.
        b"]K\x01a",
    ],
)
def test_a_file_can_not_alter_what_stands_for_torch(tmp_path, files, target, state):
    path = four_floats(tmp_path / "evil.bin", target + state + b"b.")
    with pytest.raises(ValueError, match="can't be altered"):
        read_torch_file(path)
    assert "dense" in read_torch_file(str(files / "zip.bin"))


def test_an_attribute_of_an_ordered_dict_hides_no_method(tmp_path):
    state = b"}X\x05\x00\x00\x00itemsK\x01sb."
    path = as_zip(tmp_path / "evil.bin", b"ccollections\nOrderedDict\n)R" + state)
    assert list(read_torch_file(path).items()) == []


def test_an_extension_that_pickle_has_cached_is_refused(tmp_path):
    copyreg.add_extension("posixpath", "join", 200)
    try:
        assert pickle.loads(b"\x80\x02\x82\xc8.") is os.path.join
        path = as_zip(tmp_path / "evil.bin", b"\x80\x02\x82\xc8.")
        with pytest.raises(ValueError, match="names the pickle extension 200"):
            read_torch_file(path)
    finally:
        copyreg.remove_extension("posixpath", "join", 200)


def test_an_absurd_memo_is_refused(tmp_path):
    path = as_zip(tmp_path / "evil.bin", b"\x80\x02Nr\xff\xff\xff\xff.")
    with pytest.raises(ValueError, match="evil.bin is.*memo index 4294967295"):
        read_torch_file(path)


def test_a_name_that_is_refused_is_shown_without_its_controls(tmp_path):
    path = as_zip(tmp_path / "evil.bin", named("os", "\x1b[2Ja" * 99, protocol=0))
    with pytest.raises(ValueError, match=r"names os\.\\x1b\[2Ja") as error:
        read_torch_file(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def tensor_pickle(count=4, offset=0, shape=(2, 2), strides=(2, 1), kind="storage"):
    """A pickle of {"a": tensor}, opcode by opcode as `torch.save` writes it."""
    numbers = [
        "".join(f"{'F' if number % 1 else 'I'}{number}\n" for number in each)
        for each in (shape, strides)
    ]
    storage = f"(S'{kind}'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\ntQ"
    return (
        f"(dS'a'\nctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n"
        f"({numbers[0]}t({numbers[1]}tI00\n(dtRs."
    ).encode()


FOUR_FLOATS = np.arange(4, dtype="<f4").tobytes()


def four_floats(path, pickled=None, compression=zipfile.ZIP_STORED, **changes):
    pickled = pickled or tensor_pickle(**changes)
    return as_zip(path, pickled, [("data/0", FOUR_FLOATS)], compression)


def test_a_tensor_written_by_hand_is_read(tmp_path):
    path = four_floats(tmp_path / "hand.bin")
    np.testing.assert_array_equal(read_torch_file(path)["a"].read(), [[0, 1], [2, 3]])


def test_a_repacked_and_compressed_file_is_read(tmp_path):
    changes = {"offset": 1, "shape": (3,), "strides": (1,)}
    path = four_floats(tmp_path / "a.bin", compression=zipfile.ZIP_DEFLATED, **changes)
    np.testing.assert_array_equal(read_torch_file(path)["a"].read(), [1, 2, 3])


def test_attributes_of_a_parameter_are_dropped(tmp_path):
    function = b"ctorch._utils\n_rebuild_parameter_with_state\n("
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + STORAGE + b"I2\n(t(ttR"
    pickled = function + tensor + b"I01\nN(S'tag'\nI1\ndtR."
    tensor = read_torch_file(four_floats(tmp_path / "a.bin", pickled))
    assert tensor.shape == tensor.read().shape == ()
    assert tensor.read() == 2


def test_a_view_that_is_yet_to_be_negated_is_refused(tmp_path):
    # As torch.save writes the imaginary part of a conjugate: the sign is a flag.
    pickled = tensor_pickle().replace(b"(dtRs.", b"(d(S'neg'\nI01\ndtRs.")
    with pytest.raises(ValueError, match="a.bin holds a view with a pending negation"):
        read_torch_file(four_floats(tmp_path / "a.bin", pickled))


def test_an_expanded_tensor_takes_no_memory_of_its_own(tmp_path):
    path = four_floats(tmp_path / "a.bin", shape=(10**6, 10**6), strides=(0, 0))
    assert read_torch_file(path)["a"].read()[-1, -1] == 0


def test_a_record_shorter_than_it_says_is_refused(tmp_path):
    # Sixteen bytes that unpack to as many, where the directory says 400,000.
    size = 100_000
    changes = {"count": size, "shape": (size, 1), "strides": (1, 1)}
    path = as_zip(tmp_path / "lie.bin", tensor_pickle(**changes), [])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", FOUR_FLOATS)
    raw = bytearray((tmp_path / "lie.bin").read_bytes())
    struct.pack_into("<I", raw, raw.rfind(b"PK\x01\x02") + 24, 4 * size)
    (tmp_path / "lie.bin").write_bytes(raw)
    tensor = read_torch_file(path)["a"]
    with pytest.raises(ValueError, match="lie.bin is no whole file of torch.save"):
        tensor.read()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_spoilt_numbers_are_refused_when_they_are_read(tmp_path, compression):
    path = four_floats(tmp_path / "spoilt.bin", compression=compression)
    raw = bytearray((tmp_path / "spoilt.bin").read_bytes())
    raw[raw.find(b"archive/data/0") + len("archive/data/0")] ^= 0xFF
    (tmp_path / "spoilt.bin").write_bytes(raw)
    tensor = read_torch_file(path)["a"]
    with pytest.raises(ValueError, match="spoilt.bin is no whole file of torch.save"):
        tensor.read()


def test_an_open_file_holds_no_numbers_until_they_are_read(files, tmp_path):
    shutil.copy(files / "legacy.bin", tmp_path)
    content = read_torch_file(str(tmp_path / "legacy.bin"))
    (tmp_path / "legacy.bin").write_bytes(b"")
    assert content["dense"].shape == (4, 6)
    with pytest.raises(ValueError, match="legacy.bin is no whole file of torch.save"):
        content["dense"].read()


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
        ({"count": -4}, "unknown reference"),
        ({"shape": (2.5, 2)}, "no tensor of numbers"),
        ({"shape": (10**18, 10**18)}, "ends at element"),
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
