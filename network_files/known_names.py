"""Pickles of networks: every name that they may hold, and what stands for it here.

Nothing is imported or called by its name in the file. What torch, numpy and the like put into files is rebuilt by the
functions here, which check their arguments; all other names are refused. The source code in files of the released
format is a string like others. `restricted_pickle` keeps memory and time in bounds.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import EasyDict, UserError
from network_files import tensorflow_format
from network_files.restricted_pickle import Allowed, Refused, RestrictedUnpickler, is_key
from torch_utils import persistence

MAX_MESSAGE = 400                       # letters; more is part of the file, not of an explanation
MAX_NETWORKS = 64                       # in a file; each takes time and memory to build

RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"


def load(stream: BinaryIO) -> Any:
    """The object in the stream. Raises Refused for what is not allowed, UserError for a network that does not fit,
    pickle.UnpicklingError and other exceptions where the stream is damaged.
    """
    stream = stream if stream.seekable() else io.BytesIO(stream.read())
    try:
        with _no_collection():
            reconstruct = Allowed(RECONSTRUCT, _at_most(MAX_NETWORKS, persistence._reconstruct_persistent_obj))
            return RestrictedUnpickler(stream, {**ALLOWED, RECONSTRUCT: reconstruct}).load()
    except Exception as error:
        if len(str(error)) > MAX_MESSAGE:
            raise UserError(f"{type(error).__name__}: {str(error)[:MAX_MESSAGE]} ...") from None
        raise


def _at_most(count: int, rebuild: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """That function, but it refuses to make more than `count` modules."""
    made = 0

    def counted(meta: Any) -> Any:
        nonlocal made
        result = rebuild(meta)
        made += isinstance(result, torch.nn.Module)
        if made > count:
            raise Refused(f"it holds more than {count} networks")
        return result

    return counted


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Inside, there is no garbage collection. It would go through all that is being built again and again, which takes
    a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# ---------------------------------------------------------------------------------------------------------------------
# Torch tensors. They pickle as a view of a storage, and the storage as a small torch.save file within the file.

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}
_STORAGE_NAMES = {f"torch.{name}": Allowed(f"torch.{name}") for name in _STORAGE_DTYPES}
_SAVE_MAGIC = 0x1950A86A20F9469CFC6C    # of torch.save's format without a zip, which storages use
_SAVE_PROTOCOL = 1001
_MAX_STORAGE_OPCODES = 200              # of each pickle in it; torch writes at most 30


class _StorageUnpickler(RestrictedUnpickler):
    def persistent_load(self, pid: Any) -> Any:
        fits = (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], Allowed)
                and isinstance(pid[2], str) and (len(pid) == 5 or pid[5] is None))
        if not fits:
            raise Refused(f"a storage in it is described as {_brief(pid)}")
        return _STORAGE_DTYPES[pid[1].name.removeprefix("torch.")], pid[2]


def _load_storage(data: bytes) -> Tensor:
    """The storage as a flat tensor, as torch.storage._load_from_bytes reads it. Five small pickles, then the number of
    elements and the elements. torch.load(weights_only=True) reads them as fast, but some such pickles hang it.
    """
    _expect(isinstance(data, bytes), "a storage", type(data).__name__)
    stream = io.BytesIO(data)
    parts = [_StorageUnpickler(stream, _STORAGE_NAMES, _MAX_STORAGE_OPCODES).load() for _ in range(5)]
    magic, protocol, system, (dtype, key), keys = parts
    _expect((magic, protocol, keys) == (_SAVE_MAGIC, _SAVE_PROTOCOL, [key]), "a storage's header",
            (magic, protocol, keys))
    little = isinstance(system, dict) and system.get("little_endian")
    _expect(little is (sys.byteorder == "little"), "a storage's byte order", system)
    numel = int.from_bytes(stream.read(8), "little", signed=True)
    values = bytearray(stream.getbuffer()[stream.tell():])
    return persistence.decode_tensor(values, str(dtype).removeprefix("torch."), [numel])


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= persistence.MAX_DIMENSIONS and all(
        type(n) is int and n >= 0 for n in value)


def _rebuild_tensor(storage: Any, offset: int, shape: Sequence[int], stride: Sequence[int], requires_grad: bool = False,
                    backward_hooks: Any = None, metadata: Any = None) -> Tensor:
    _expect(_is_size(shape) and _is_size(stride) and len(shape) == len(stride) and _is_size((offset,))
            and isinstance(storage, Tensor) and storage.ndim == 1, "a tensor", (shape, stride))
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride)) if 0 not in shape else -1
    _expect(last < storage.numel() >= offset and math.prod(shape) <= max(storage.numel(), 1),
            "a tensor", (offset, shape, stride, storage.numel()))
    return storage.as_strided(shape, stride, offset).requires_grad_(requires_grad is True)


def _rebuild_parameter(data: Any, requires_grad: bool = True, backward_hooks: Any = None) -> torch.nn.Parameter:
    _expect(isinstance(data, Tensor), "a parameter", type(data).__name__)
    return torch.nn.Parameter(data.detach(), requires_grad=requires_grad is True)


# ---------------------------------------------------------------------------------------------------------------------
# numpy scalars and arrays of numbers.

_NUMBER_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class _DType:
    """numpy.dtype as a file states it. `resolve` accepts numbers only."""

    def __init__(self, code: Any, *flags: Any):
        self.code = code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        fits = isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "=")
        _expect(fits, "a numpy dtype", state)
        self.order = state[1]

    def resolve(self) -> np.dtype:
        _expect(isinstance(self.code, str) and self.code in _NUMBER_CODES, "a numpy dtype", self.code)
        return np.dtype(self.code).newbyteorder(self.order)


class _Array(np.ndarray):
    """numpy.ndarray as a file states it: allocated empty, then filled by __setstate__ from bytes of the right number.
    """

    def __setstate__(self, state: Any) -> None:
        _expect(isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _DType)
                and isinstance(state[4], bytes), "a numpy array", state)
        _, shape, dtype, fortran, data = state
        dtype = dtype.resolve()
        _expect(_is_size(shape) and len(data) == math.prod(shape) * dtype.itemsize,
                "a numpy array", (shape, str(dtype), len(data)))
        super().__setstate__((1, shape, dtype, bool(fortran), data))


def _array_shell(*args: Any) -> _Array:
    return _Array.__new__(_Array, (0,), "u1")


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    _expect(isinstance(data, (bytes, memoryview)) and isinstance(dtype, _DType) and order in ("C", "F"),
            "a numpy array", (shape, order))
    return np.frombuffer(data, dtype=dtype.resolve()).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any = None) -> Any:
    """As a Python number."""
    _expect(isinstance(dtype, _DType) and isinstance(data, bytes) and len(data) == dtype.resolve().itemsize,
            "a numpy number", data)
    return np.frombuffer(data, dtype=dtype.resolve())[0].item()


# ---------------------------------------------------------------------------------------------------------------------
# Containers and bytes. The file chooses what these get, so they must not take the letters of a text for items.

def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 spells bytes."""
    _expect(isinstance(text, str) and encoding in ("latin1", "latin-1"), "bytes", encoding)
    return text.encode("latin1")


def _size(items: Any = ()) -> tuple:
    _expect(isinstance(items, (tuple, list)), "a size", items)
    return tuple(items)


def _set(items: Any = ()) -> set:
    _expect(isinstance(items, (tuple, list)) and all(map(is_key, items)), "a set", items)
    return set(items)


def _ordered_dict(items: Any = ()) -> collections.OrderedDict:
    fits = isinstance(items, dict) or (isinstance(items, (tuple, list)) and all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and is_key(pair[0]) for pair in items))
    _expect(fits, "a dict", items)
    return collections.OrderedDict(items)


class _NewEasyDict:
    """A class, as files name one, whose instances are EasyDicts."""

    def __new__(cls, items: Any = ()) -> EasyDict:
        _expect(isinstance(items, dict) or items == (), "an EasyDict", items)
        return EasyDict(items)


def _expect(fits: bool, what: str, value: Any) -> None:
    if not fits:
        raise UserError(f"{what} in it is malformed: {_brief(value)}")


def _brief(value: Any) -> str:
    """For messages: what the file gave, at most a line of it."""
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_brief, value[:8])) + (", ...)" if len(value) > 8 else ")")
    if isinstance(value, (str, bytes)):
        return repr(value[:80])
    return repr(value) if value is None or isinstance(value, (int, float)) else type(value).__name__


# ---------------------------------------------------------------------------------------------------------------------

def _table() -> Iterator[Allowed]:
    yield Allowed(RECONSTRUCT, persistence._reconstruct_persistent_obj)
    for name in ("torch_utils.persistence.decode_tensor", "torch_utils.tensor_bytes.decode"):      # now, before 0.1
        yield Allowed(name, persistence.decode_tensor)
    yield Allowed("torch.storage._load_from_bytes", _load_storage)
    yield Allowed("torch._utils._rebuild_tensor_v2", _rebuild_tensor)
    yield Allowed("torch._utils._rebuild_parameter", _rebuild_parameter)
    yield Allowed("torch.Size", _size)
    yield Allowed("collections.OrderedDict", _ordered_dict, takes_items=True)
    yield Allowed("builtins.set", _set)
    yield Allowed("__builtin__.set", _set)
    yield Allowed("_codecs.encode", _latin1)
    for name in ("dnnlib.util.EasyDict", "dnnlib.EasyDict"):
        yield Allowed(name, _NewEasyDict, takes_items=True)
    yield Allowed("dnnlib.tflib.network.Network", tensorflow_format.Network, takes_state=True)
    yield Allowed("numpy.dtype", _DType, takes_state=True)
    yield Allowed("numpy.ndarray")
    for core in ("numpy.core", "numpy._core"):
        yield Allowed(f"{core}.multiarray._reconstruct", _array_shell, takes_state=True)
        yield Allowed(f"{core}.multiarray.scalar", _scalar)
        yield Allowed(f"{core}.numeric._frombuffer", _array_from_buffer)
    for name in ("plucker_embedding", "origin_dir_embedding", "two_plane_embedding"):
        yield Allowed(f"training.plucker.{name}")


ALLOWED = {allowed.name: allowed for allowed in _table()}
