"""An unpickler for network files that runs nothing of what a file embeds and imports nothing that it names.

Every name in a file is looked up in one table. What torch, numpy and the like put into files is rebuilt by the functions
here, which check their arguments; all other names are refused. The source code in files of the released format is a string
among others. Before anything is loaded, `pickle_scan` goes through the opcodes of the pickle, and of those nested in it.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import io
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from dnnlib.util import EasyDict, UserError
from torch_utils import persistence, pickle_scan, tensor_bytes, tensorflow_format
from torch_utils.pickle_scan import Refused, Rules

__all__ = ["Refused", "load"]

MAX_MESSAGE = 400                         # letters; more is part of the file, not of an explanation
MAX_NETWORKS = 64                         # in a file; each takes time and memory to build, whatever there is of it in the file

RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"


def load(stream: BinaryIO, trust: bool = False) -> Any:
    """The object in the stream. Raises Refused for what is not allowed, UserError for a network that does not fit,
    pickle.UnpicklingError and other exceptions where the stream is no sound pickle.

    trust: import and run whatever the file asks for, the embedded source of networks that are none of ours included.
    """
    if trust:
        from torch_utils import trusted_source  # builds on this module
        return trusted_source.load(stream)
    stream = stream if stream.seekable() else io.BytesIO(stream.read())
    try:
        with _no_collection():
            allowed = {**ALLOWED, RECONSTRUCT: _Call(_at_most(MAX_NETWORKS, persistence._reconstruct_persistent_obj))}
            return _Unpickler(stream, allowed, Rules(allowed.keys(), _TAKE_ITEMS, _TAKE_STATE)).load()
    except Exception as error:
        if len(str(error)) > MAX_MESSAGE:
            raise UserError(f"{type(error).__name__}: {str(error)[:MAX_MESSAGE]} ...") from None
        raise


def _at_most(count: int, rebuild: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """That function, which refuses to make more than `count` modules."""
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
    """Without garbage collection, which would look through all that is being built again and again: a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Unpickler(pickle.Unpickler):
    """Knows the names in `allowed` and no others. Protocol 2 files name classes as Python 2 did."""

    def __init__(self, stream: BinaryIO, allowed: dict[str, Any], rules: Rules):
        pickle_scan.scan(stream, rules)
        super().__init__(stream)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in self._allowed:
            raise Refused(f"it names {full_name!r}, which no network needs; it was not run")
        return self._allowed[full_name]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to storages outside of the pickle, as torch.save does; expected a network-snapshot-*.pkl")


class _Sealed:
    """What a name in a file stands for. Pickles can set attributes even of functions and classes, but not of this."""

    def __setstate__(self, state: Any) -> None:
        raise Refused(f"it tries to change {self!r}")


class _Call(_Sealed):
    """A function that files may call."""

    def __init__(self, function: Any):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Name(_Sealed):
    """Something that files mention and nobody calls."""

    def __init__(self, full_name: str):
        self.full_name = full_name

    def __repr__(self) -> str:
        return f"<{self.full_name}>"


class _NewEasyDict(_Sealed):
    """A class, as files name one, whose instances are EasyDicts."""

    def __new__(cls, items: Any = ()) -> EasyDict:
        _expect(isinstance(items, dict) or items == (), "an EasyDict", items)
        return EasyDict(items)


# ---------------------------------------------------------------------------------------------------------------------
# Torch tensors, which pickle as a view on a storage; the storage is a small torch.save file within the file.

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}
_SAVE_MAGIC = 0x1950A86A20F9469CFC6C      # of torch.save's format without a zip, which storages use
_SAVE_PROTOCOL = 1001


class _StorageType(_Sealed):
    """Stands for a class like torch.FloatStorage."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


_STORAGE_NAMES = {f"torch.{name}": _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()}


class _StorageUnpickler(_Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], _StorageType)
                and isinstance(pid[2], str) and (len(pid) == 5 or pid[5] is None)):
            raise Refused(f"a storage in it is described as {_brief(pid)}")
        return pid[1].dtype, pid[2]


def _load_storage(data: bytes) -> torch.Tensor:
    """What torch.storage._load_from_bytes reads, by hand: the storage as a flat tensor."""
    _expect(isinstance(data, bytes), "a storage", type(data).__name__)
    stream = io.BytesIO(data)
    rules = Rules(_STORAGE_NAMES.keys(), persistent_ids=True, max_opcodes=200)
    magic, protocol, system, (dtype, key), keys = (_StorageUnpickler(stream, _STORAGE_NAMES, rules).load() for _ in range(5))
    _expect((magic, protocol, keys) == (_SAVE_MAGIC, _SAVE_PROTOCOL, [key]), "the header of a storage", (magic, protocol, keys))
    _expect(isinstance(system, dict) and system.get("little_endian") is (sys.byteorder == "little"), "the byte order of a storage", system)
    numel = int.from_bytes(stream.read(8), "little", signed=True)
    values = bytearray(stream.getbuffer()[stream.tell():])
    return tensor_bytes.decode(values, str(dtype).removeprefix("torch."), [numel])


def _rebuild_tensor(storage: Any, offset: int, shape: Sequence[int], stride: Sequence[int], requires_grad: bool = False,
                    backward_hooks: Any = None, metadata: Any = None) -> torch.Tensor:
    sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= tensor_bytes.MAX_DIMENSIONS
    _expect(sizes and isinstance(storage, torch.Tensor) and storage.ndim == 1 and all(type(n) is int and n >= 0 for n in (offset, *shape, *stride)),
            "a tensor", (shape, stride))
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride)) if 0 not in shape else -1
    _expect(last < storage.numel() >= offset and math.prod(shape) <= max(storage.numel(), 1), "a tensor", (offset, shape, stride, storage.numel()))
    return storage.as_strided(tuple(shape), tuple(stride), offset).requires_grad_(requires_grad is True)


def _rebuild_parameter(data: Any, requires_grad: bool = True, backward_hooks: Any = None) -> torch.nn.Parameter:
    _expect(isinstance(data, torch.Tensor), "a parameter", type(data).__name__)
    return torch.nn.Parameter(data.detach(), requires_grad=requires_grad is True)


# ---------------------------------------------------------------------------------------------------------------------
# numpy scalars and arrays of numbers.

_NUMBER_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class _DType:
    """numpy.dtype as a file states it; `resolve` accepts numbers only."""

    def __init__(self, code: Any, *flags: Any):
        self.code = code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        _expect(isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "="), "a numpy dtype", state)
        self.order = state[1]

    def resolve(self) -> np.dtype:
        _expect(isinstance(self.code, str) and self.code in _NUMBER_CODES, "a numpy dtype", self.code)
        return np.dtype(self.code).newbyteorder(self.order)


class _Array(np.ndarray):
    """numpy.ndarray as a file states it: allocated empty, filled by __setstate__ from bytes of the right number."""

    def __setstate__(self, state: Any) -> None:
        _expect(isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _DType) and isinstance(state[4], bytes), "a numpy array", state)
        _, shape, dtype, fortran, data = state
        dtype = dtype.resolve()
        _expect(isinstance(shape, tuple) and len(shape) <= tensor_bytes.MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
                and len(data) == math.prod(shape) * dtype.itemsize, "a numpy array", (shape, str(dtype), len(data)))
        super().__setstate__((1, shape, dtype, bool(fortran), data))


def _array_shell(*args: Any) -> _Array:
    return _Array.__new__(_Array, (0,), "u1")


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    _expect(isinstance(data, (bytes, bytearray)) and isinstance(dtype, _DType) and order in ("C", "F"), "a numpy array", (shape, order))
    return np.frombuffer(data, dtype=dtype.resolve()).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any = None) -> Any:
    """As a Python number."""
    _expect(isinstance(dtype, _DType) and isinstance(data, bytes) and len(data) == dtype.resolve().itemsize, "a numpy number", data)
    return np.frombuffer(data, dtype=dtype.resolve())[0].item()


# ---------------------------------------------------------------------------------------------------------------------

def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 spells bytes."""
    _expect(isinstance(text, str) and encoding in ("latin1", "latin-1"), "bytes", encoding)
    return text.encode("latin1")


# A file chooses what it gives to these, so they must not see letters of a text as items, nor compare or hash what may take for ever.

def _size(items: Any = ()) -> tuple:
    _expect(isinstance(items, (tuple, list)), "a size", items)
    return tuple(items)


def _set(items: Any = ()) -> set:
    _expect(isinstance(items, (tuple, list)) and all(map(_is_key, items)), "a set", items)
    return set(items)


def _ordered_dict(items: Any = ()) -> collections.OrderedDict:
    fits = isinstance(items, dict) or (isinstance(items, (tuple, list)) and all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and _is_key(pair[0]) for pair in items))
    _expect(fits, "a dict", items)
    return collections.OrderedDict(items)


def _is_key(value: Any) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 32)


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


_FUNCTIONS = {
    RECONSTRUCT:                                           persistence._reconstruct_persistent_obj,
    "torch_utils.tensor_bytes.decode":                      tensor_bytes.decode,
    "torch.storage._load_from_bytes":                       _load_storage,
    "torch._utils._rebuild_tensor_v2":                      _rebuild_tensor,
    "torch._utils._rebuild_parameter":                      _rebuild_parameter,
    "torch.Size":                                           _size,
    "collections.OrderedDict":                              _ordered_dict,
    "builtins.set":                                         _set,
    "__builtin__.set":                                      _set,
    "_codecs.encode":                                       _latin1,
    "numpy.dtype":                                          _DType,
    **{f"{core}.{name}": function for core in ("numpy.core", "numpy._core") for name, function in [
        ("multiarray._reconstruct", _array_shell), ("multiarray.scalar", _scalar), ("numeric._frombuffer", _array_from_buffer)]},
}
_MENTIONED = ("numpy.ndarray", "training.plucker.plucker_embedding", "training.plucker.origin_dir_embedding", "training.plucker.two_plane_embedding")

_TAKE_ITEMS = ("collections.OrderedDict", "dnnlib.util.EasyDict", "dnnlib.EasyDict")
_TAKE_STATE = ("numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "dnnlib.tflib.network.Network")

ALLOWED: dict[str, Any] = {
    **{name: _Call(function) for name, function in _FUNCTIONS.items()},
    **{name: _Name(name) for name in _MENTIONED},
    "dnnlib.util.EasyDict":     _NewEasyDict,
    "dnnlib.EasyDict":          _NewEasyDict,
    "dnnlib.tflib.network.Network": tensorflow_format.Network,
}
