"""Files of `torch.save`, read without PyTorch and without running what is in them.

Source: the formats as PyTorch 2.14 writes them (`torch/serialization.py`).
"""

import dataclasses
import pickle
import struct
import types
import zipfile
from collections.abc import Callable

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_BROKEN = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that stays in its file until it is read.

    Attributes:
        shape: tuple of int.
        dtype: NumPy dtype; bfloat16 is that of `ml_dtypes`.
        read: callable without arguments, to the array as it is stored.
    """

    shape: tuple
    dtype: np.dtype
    read: Callable

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a tensor can't be given another state")


def read_torch_file(path):
    """Reads what `torch.save` wrote, in the zip format or the one before PyTorch 1.6.

    Args:
        path: str.

    Returns:
        The object, mostly a dict, each tensor in it a `StoredTensor`.

    Raises:
        ValueError: if the file is broken, or names a global besides those of tensors.
            Nothing of it is executed.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_legacy(path)
    except _Refused as error:
        raise ValueError(f"{path} {error}") from None
    except _BROKEN as error:
        raise ValueError(
            f"{path} is no whole file of torch.save: {type(error).__name__}: {error}"
        ) from None


class _Refused(Exception):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: np.dtype

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a storage type can't be given another state")


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
    """Elements in a file; `read(start, count)` gives some of them as bytes."""

    dtype: np.dtype
    count: int
    read: Callable

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a storage can't be given another state")


class _Dict(dict):
    """An OrderedDict of the file, which may carry metadata as an attribute."""


# What stands for the globals of tensors. Slotless instances, not functions or
# classes, so that a file can't alter them for the next one.
class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        return _tensor(storage, offset, shape, strides)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor, *_):
        return tensor


class _MakeDict:
    __slots__ = ()

    def __call__(self, *items):
        return _Dict(*items)


_GLOBALS = types.MappingProxyType(
    {
        ("collections", "OrderedDict"): _MakeDict(),
        ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
        ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        **{
            ("torch", f"{name}Storage"): _StorageType(np.dtype(dtype))
            for name, dtype in {
                "Double": np.float64,
                "Float": np.float32,
                "Half": np.float16,
                "BFloat16": ml_dtypes.bfloat16,
                "Long": np.int64,
                "Int": np.int32,
                "Short": np.int16,
                "Char": np.int8,
                "Byte": np.uint8,
                "Bool": np.bool_,
            }.items()
        },
    }
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, open_storage=None):
        super().__init__(file, encoding="utf-8")
        self._open_storage = open_storage

    def find_class(self, module, name):
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise _Refused(
                f"names {module}.{name}, which is not needed to read tensors; it was "
                "refused, and nothing of the file was executed"
            ) from None

    def persistent_load(self, reference):
        kind, storage_type, key, _, count, *view = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown reference {reference!r}")
        if self._open_storage is None or any(view):
            raise pickle.UnpicklingError(f"unexpected storage {reference!r}")
        return self._open_storage(storage_type.dtype, str(key), int(count))


def _tensor(storage, offset, shape, strides):
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise pickle.UnpicklingError(f"no tensor of shape {shape}, strides {strides}")
    if min((0, offset, *shape, *strides)) < 0:
        raise pickle.UnpicklingError(f"a negative size: {offset}, {shape}, {strides}")
    empty = 0 in shape
    extent = (
        0
        if empty
        else 1
        + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    )
    if offset + extent > storage.count:
        raise pickle.UnpicklingError(
            f"a tensor of shape {shape} ends at element {offset + extent} of a "
            f"storage of {storage.count}"
        )

    def read():
        data = np.frombuffer(storage.read(offset, extent), storage.dtype)
        if empty:
            return data.reshape(shape)
        steps = [stride * storage.dtype.itemsize for stride in strides]
        return np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(data, shape, steps)
        ).reshape(shape)

    return StoredTensor(shape, storage.dtype, read)


def _read_zip(path):
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        pickles = [name for name in sizes if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"{len(pickles)} records of name data.pkl")
        stem = pickles[0].removesuffix("data.pkl")
        order = f"{stem}byteorder"
        if order in sizes and archive.read(order) != b"little":
            raise pickle.UnpicklingError("only little-endian files can be read")

        def open_storage(dtype, key, count):
            name = f"{stem}data/{key}"
            if sizes.get(name) != count * dtype.itemsize:
                raise pickle.UnpicklingError(
                    f"{name} has {sizes.get(name)} bytes, not {count} of {dtype}"
                )
            return _Storage(dtype, count, _zip_reader(path, name, dtype.itemsize))

        with archive.open(pickles[0]) as file:
            return _Unpickler(file, open_storage).load()


def _zip_reader(path, name, itemsize):
    def read(start, count):
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            if start:
                file.seek(start * itemsize)
            return file.read(count * itemsize)

    return read


def _read_legacy(path):
    storages = {}

    def open_storage(dtype, key, count):
        known = storages.setdefault(key, (dtype, count))
        if known != (dtype, count):
            raise pickle.UnpicklingError(f"two storages of key {key}")

        def read(start, count):
            with open(path, "rb") as file:
                file.seek(places[key] + start * dtype.itemsize)
                return file.read(count * dtype.itemsize)

        return _Storage(dtype, count, read)

    with open(path, "rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("neither a zip file nor one of torch.save")
        if _Unpickler(file).load() != _LEGACY_VERSION:
            raise pickle.UnpicklingError("a version of torch.save that is not known")
        if not _Unpickler(file).load().get("little_endian", True):
            raise pickle.UnpicklingError("only little-endian files can be read")
        content = _Unpickler(file, open_storage).load()
        keys = [str(key) for key in _Unpickler(file).load()]
        places = _legacy_places(file, keys, storages)
    return content


def _legacy_places(file, keys, storages):
    """Where the elements of each storage begin; they follow the pickles in turn."""
    if sorted(keys) != sorted(storages):
        raise pickle.UnpicklingError(f"storages {sorted(storages)}, but data of {keys}")
    places = {}
    for key in keys:
        dtype, count = storages[key]
        (held,) = struct.unpack("<q", file.read(8))
        if held != count:
            raise pickle.UnpicklingError(f"storage {key} has {held} elements")
        places[key] = file.tell()
        file.seek(count * dtype.itemsize, 1)
    end = file.tell()
    if end > file.seek(0, 2):
        raise pickle.UnpicklingError("the file ends within a storage")
    return places
