"""Files of `torch.save`, read without PyTorch and without running what is in them.

Source: the formats as PyTorch 2.14 writes them (`torch/serialization.py`).
"""

import collections
import contextlib
import dataclasses
import functools
import io
import pickle
import pickletools
import struct
import types
import zipfile
from collections.abc import Callable

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Bytes of a pickle, beside which the numbers lie: more is a compressed bomb.
_LONGEST = 2**28


class _Unalterable:
    """What a file gets hold of, and can't give another state by BUILD."""

    # Not dataclasses' slots=True: that adds one which sets the fields.
    def __setstate__(self, state):
        raise pickle.UnpicklingError(f"a {type(self).__name__} can't be altered")


@dataclasses.dataclass(frozen=True)
class StoredTensor(_Unalterable):
    """A tensor that stays in its file until it is read.

    Attributes:
        shape: tuple of int.
        dtype: NumPy dtype; bfloat16 is that of `ml_dtypes`.
        read: callable without arguments, to the array as it is stored. It may be
            read-only, and the elements of an expanded tensor share memory.
    """

    shape: tuple
    dtype: np.dtype
    read: Callable


def read_torch_file(path):
    """Reads what `torch.save` wrote, in the zip format or the one before PyTorch 1.6.

    Args:
        path: str.

    Returns:
        The object, mostly a dict, each tensor in it a `StoredTensor`.

    Raises:
        ValueError: if the file is broken, or names a global besides those of tensors.
            Nothing of it is executed. `StoredTensor.read` raises it too.
    """
    with open(path, "rb") as file, _telling(path):
        begin = file.read(16)
        file.seek(0)
        if begin.startswith(b"PK"):
            return _read_zip(path, file)
        if begin.startswith(pickle.PROTO):
            return _read_legacy(path, file)
        raise pickle.UnpicklingError(f"it begins with {begin!r}")


class _Refused(Exception):
    pass


@contextlib.contextmanager
def _telling(path):
    """Turns what is wrong with a file into a ValueError that names it."""
    try:
        yield
    except _Refused as error:
        raise ValueError(f"{path} {error}") from None
    # pickle, zipfile and zlib document no closed list of what broken input raises.
    except Exception as error:
        raise ValueError(
            f"{path} is no whole file of torch.save: {type(error).__name__}: {error}"
        ) from None


@dataclasses.dataclass(frozen=True)
class _StorageType(_Unalterable):
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Storage(_Unalterable):
    """Elements in a file; `read(start, size)` gives some of their bytes."""

    path: str
    dtype: np.dtype
    count: int
    read: Callable


@dataclasses.dataclass(frozen=True)
class _Function(_Unalterable):
    """Stands for a function of PyTorch; attributes of a real one could be set."""

    function: Callable

    def __call__(self, *arguments):
        return self.function(*arguments)


class _OrderedDict(collections.OrderedDict):
    def __setstate__(self, state):
        """Drops the versions of modules: an attribute could hide `items` or `get`."""


def _parameter(tensor, *_):
    return tensor


def _tensor(storage, offset, shape, strides, *rest):
    # After requires_grad and hooks comes what a view has yet to do to its numbers.
    if any(rest[2:]):
        raise _Refused("holds a view with a pending negation, which is not read")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or {type(n) for n in numbers} != {int}:
        raise pickle.UnpicklingError("no tensor of numbers in a storage")
    if len(shape) != len(strides):
        raise pickle.UnpicklingError(f"no tensor of shape {shape}, strides {strides}")
    if min(numbers) < 0:
        raise pickle.UnpicklingError(f"a negative size: {offset}, {shape}, {strides}")
    steps = [step if size > 1 else 0 for size, step in zip(shape, strides, strict=True)]
    span = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    extent = 0 if 0 in shape else span
    if offset + extent > storage.count:
        raise pickle.UnpicklingError(
            f"a tensor of shape {shape} ends at element {offset + extent} of a "
            f"storage of {storage.count}"
        )
    read = functools.partial(_array, storage, offset, extent, tuple(shape), steps)
    return StoredTensor(tuple(shape), storage.dtype, read)


def _array(storage, offset, extent, shape, steps):
    """The array of a tensor whose `extent` elements begin at `offset`."""
    width = storage.dtype.itemsize
    with _telling(storage.path):
        data = storage.read(offset * width, extent * width)
        # NumPy checks strides against the bytes, but takes b"" for any number of them.
        if len(data) != extent * width:
            raise EOFError(f"{len(data)} bytes in place of {extent * width}")
        array = np.ndarray(shape, storage.dtype, data, 0, [width * s for s in steps])
    # A copy of an expanded tensor may be of any size.
    expanded = array.size > extent
    return array if array.flags.c_contiguous or expanded else array.copy()


_GLOBALS = types.MappingProxyType(
    {
        "collections.OrderedDict": _Function(_OrderedDict),
        "torch.Size": _Function(tuple),
        "torch._utils._rebuild_tensor": _Function(_tensor),
        "torch._utils._rebuild_tensor_v2": _Function(_tensor),
        "torch._utils._rebuild_parameter": _Function(_parameter),
        "torch._utils._rebuild_parameter_with_state": _Function(_parameter),
        "torch.DoubleStorage": _StorageType(np.dtype(np.float64)),
        "torch.FloatStorage": _StorageType(np.dtype(np.float32)),
        "torch.HalfStorage": _StorageType(np.dtype(np.float16)),
        "torch.BFloat16Storage": _StorageType(np.dtype(ml_dtypes.bfloat16)),
        "torch.LongStorage": _StorageType(np.dtype(np.int64)),
        "torch.IntStorage": _StorageType(np.dtype(np.int32)),
        "torch.ShortStorage": _StorageType(np.dtype(np.int16)),
        "torch.CharStorage": _StorageType(np.dtype(np.int8)),
        "torch.ByteStorage": _StorageType(np.dtype(np.uint8)),
        "torch.BoolStorage": _StorageType(np.dtype(np.bool_)),
    }
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, open_storage):
        super().__init__(file, encoding="utf-8")
        self._open_storage = open_storage

    def find_class(self, module, name):
        full_name = f"{module}.{name}"
        if full_name not in _GLOBALS:
            # Escaped and cut: it may be long, and hold controls of a terminal.
            raise _Refused(
                f"names {ascii(full_name[:200])[1:-1]}, which no tensor needs; it was "
                "refused, and nothing of the file was executed"
            )
        return _GLOBALS[full_name]

    def persistent_load(self, reference):
        match reference:
            case ("storage", _StorageType(dtype=dtype), str(key), _, int(count), *view):
                if self._open_storage and count >= 0 and not any(view):
                    return self._open_storage(dtype, key, count)
        # Not echoed: a few bytes of pickle make a tuple without end.
        raise pickle.UnpicklingError("an unknown reference, to no storage of the file")


def _load(file, open_storage=None):
    """The object of the pickle that begins where a file stands, and ends there."""
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        # pickle's cache of extensions goes past find_class.
        if opcode.name.startswith("EXT"):
            raise _Refused(f"names the pickle extension {argument}; it was refused")
        # The unpickler allocates, and fills, a table up to the highest index.
        if opcode.name.endswith("PUT") and argument > position:
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position}")
    size = file.tell() - start
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(size)), open_storage).load()


def _read_zip(path, file):
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"{len(pickles)} records of name data.pkl")
        stem = pickles[0].removesuffix("data.pkl")
        order = f"{stem}byteorder"
        if order in records and _read_short(archive, order) != b"little":
            raise pickle.UnpicklingError("only little-endian files can be read")
        content = io.BytesIO(_read_short(archive, pickles[0]))

    def open_storage(dtype, key, count):
        name = f"{stem}data/{key}"
        held = records[name].file_size if name in records else None
        if held != count * dtype.itemsize:
            raise pickle.UnpicklingError(
                f"{name} has {held} bytes, not {count} of {dtype}"
            )
        return _Storage(path, dtype, count, functools.partial(_read_record, path, name))

    return _load(content, open_storage)


def _read_short(archive, name):
    size = archive.getinfo(name).file_size
    if size > _LONGEST:
        raise pickle.UnpicklingError(f"{name} has {size} bytes, more than {_LONGEST}")
    return archive.read(name)


def _read_record(path, name, start, size):
    with zipfile.ZipFile(path) as archive, archive.open(name) as record:
        record.seek(start)
        return record.read(size)


def _read_legacy(path, file):
    storages, places = {}, {}

    def open_storage(dtype, key, count):
        known = storages.setdefault(key, (dtype, count))
        if known != (dtype, count):
            raise pickle.UnpicklingError(f"two storages of key {key}")

        def read(start, size):
            with open(path, "rb") as file:
                file.seek(places[key] + start)
                return file.read(size)

        return _Storage(path, dtype, count, read)

    if _load(file) != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("a pickle, but not one of torch.save")
    if _load(file) != 1001 or not _load(file).get("little_endian", True):
        raise pickle.UnpicklingError("only little-endian version 1001 can be read")
    content = _load(file, open_storage)
    places |= _legacy_places(file, _load(file), storages)
    return content


def _legacy_places(file, keys, storages):
    """Where the elements of each storage begin; they follow the pickles in turn."""
    if sorted(keys) != sorted(storages):
        raise pickle.UnpicklingError("storages other than those that tensors name")
    places = {}
    for key in keys:
        dtype, count = storages[key]
        (held,) = struct.unpack("<q", file.read(8))
        if held != count:
            raise pickle.UnpicklingError(f"storage {key} has {held} elements")
        places[key] = file.tell()
        file.seek(count * dtype.itemsize, 1)
    if file.tell() > file.seek(0, 2):
        raise pickle.UnpicklingError("the file ends within a storage")
    return places
