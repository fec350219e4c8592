"""Networks in pickle files: class name, init arguments and tensors, never source code.

    @persistent_class
    class MyNetwork(torch.nn.Module): ...

    net = MyNetwork(16, act="relu")
    net.init_args, net.init_kwargs           # what it was built with
    with open("net.pkl", "wb") as stream:
        dump(net, stream)                    # or pickle.dump: also a file without code
    net = pickle.load(open("net.pkl", "rb"))

To load a module, its constructor is called with the stored arguments, and the stored tensors replace its parameters and
buffers. The flags training and requires_grad are stored too; other changes after construction are not. A persistent
object that is not a module comes back with its attributes. Tensors come back on the CPU, as plain bytes in the file:
without torch.load and without a copy, since protocol 5 reads them into a bytearray that the tensor keeps.

Files of StyleGAN2-ADA-PyTorch, StyleGAN3 and the released ray conditioning call the same function as ours, with source
code. `network_files.released_format` reads these and ignores the source.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import math
import os
import pickle
from collections.abc import Callable, Collection, Sequence
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from dnnlib.util import RENAMED, EasyDict, UserError, get_obj_by_name, open_whole
from torch_utils import module_state

__all__ = ["decode_tensor", "describe", "dump", "import_hook", "is_persistent", "persistent_class", "rebuild",
           "rebuild_like", "save"]

FORMAT_VERSION = 7                       # 6 and below: the released format

# Loading imports the modules of these packages by name. Modules of others must be imported before the file is loaded.
OWN_PACKAGES = ("training", "metrics", "inversion", "torch_utils")
RELEASED_FORMAT = "network_files.released_format.rebuild"          # reads entries with source code; in a higher layer

COMPUTING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)     # that weights of ours may have

FOREIGN_MODULES = "_trusted_source_"     # begins the names of modules made from code in a file; only this one has them

_classes: dict[str, type] = {}           # full name -> class, of all persistent classes
_import_hooks: list[Callable] = []

T = TypeVar("T", bound=type)


def persistent_class(cls: T) -> T:
    """Class decorator: instances know their init arguments (`init_args`, `init_kwargs`: copies) and pickle without
    code.

    A subclass needs the decorator too. Without it, its instances cannot be pickled, as they would come back as the
    base.
    """
    assert isinstance(cls, type), f"{cls!r}, expected a class"
    constructor = cls.__init__

    @functools.wraps(constructor)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_init_args" not in self.__dict__:          # the instance's own class comes before its bases
            self.__dict__["_init_args"] = copy.deepcopy(args)
            self.__dict__["_init_kwargs"] = copy.deepcopy(kwargs)
        constructor(self, *args, **kwargs)

    cls.__init__ = __init__
    cls.init_args = property(lambda self: copy.deepcopy(self.__dict__["_init_args"]),
                             doc="Positional arguments it was built with, a copy.")
    cls.init_kwargs = property(lambda self: EasyDict(copy.deepcopy(self.__dict__["_init_kwargs"])),
                               doc="Keyword arguments it was built with, a copy.")
    cls.__reduce_ex__ = _reduce
    if not hasattr(cls, "__deepcopy__"):
        cls.__deepcopy__ = _deepcopy
    if getattr(cls, "__setstate__", None) is torch.nn.Module.__setstate__:
        cls.__setstate__ = _refuse_attributes
    _classes[_full_name(cls)] = cls
    return cls


def is_persistent(obj: Any) -> bool:
    """Whether the class, or the object's class, is persistent."""
    cls = obj if isinstance(obj, type) else type(obj)
    return _classes.get(_full_name(cls)) is cls and not cls.__module__.startswith(FOREIGN_MODULES)


def import_hook(hook: Callable[[EasyDict], EasyDict]) -> None:
    """Registers `hook(meta) -> meta`, which may change what a file says of an object before the object is rebuilt.

    `meta` has type, version, class_name and state. Our own files also have init_args and init_kwargs. Released ones
    have module_src, which is never run, and the arguments inside of state.
    """
    assert callable(hook), hook
    _import_hooks.append(hook)


def dump(obj: Any, stream: BinaryIO) -> None:
    """Pickles `obj` into an open file (protocol 5), all tensors as plain bytes. Needs memory for one tensor, not for
    all.
    """
    _Pickler(stream, protocol=5).dump(obj)


def save(obj: Any, path: str | os.PathLike) -> None:
    """`dump` into a file that appears whole or not at all (dnnlib.util.open_whole)."""
    with open_whole(path) as stream:
        dump(obj, stream)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return StoredTensor(obj).__reduce_ex__(5) if type(obj) is Tensor else NotImplemented


# ---------------------------------------------------------------------------------------------------------------------
# Tensors as bytes.

MAX_DIMENSIONS = 64                      # torch's own limit
_DTYPES = {name: dtype for name, dtype in vars(torch).items()
           if isinstance(dtype, torch.dtype) and f"torch.{name}" == str(dtype)}


class StoredTensor:
    """Pickles in the tensor's place as a call of `decode_tensor`. Loading gives a tensor on the CPU."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __reduce_ex__(self, protocol: int) -> tuple:
        return decode_tensor, encode_tensor(self.tensor, protocol)


def encode_tensor(tensor: Tensor, protocol: int = 5) -> tuple:
    """The arguments of `decode_tensor`. Keeps the memory format of dense tensors and makes others contiguous."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise pickle.PicklingError(f"cannot store a tensor of layout {tensor.layout} and dtype {tensor.dtype} "
                                   f"on {tensor.device}")
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    order = tuple(sorted(range(tensor.ndim), key=lambda d: (-tensor.stride(d), d)))        # outermost in memory first
    dense = tensor.permute(order).contiguous()
    flat = dense.as_strided([dense.numel()], [1]).view(torch.uint8).numpy()       # one number may have any stride
    data = pickle.PickleBuffer(flat) if protocol >= 5 else flat.tobytes()
    name = str(tensor.dtype).removeprefix("torch.")
    return (data, name, tuple(tensor.shape)) + (() if order == tuple(range(tensor.ndim)) else (order,))


def decode_tensor(data: bytes | bytearray | memoryview, dtype: str, shape: Sequence[int],
                  order: Sequence[int] | None = None) -> Tensor:
    """A tensor of that dtype ('float32', 'bfloat16', ...) and shape on those bytes. Files name this function.

    order: the dimensions from the outermost to the innermost in memory; None: as in the shape. Only bytes are copied.
    Raises ValueError unless all of it fits together.
    """
    sized = (isinstance(shape, (tuple, list)) and len(shape) <= MAX_DIMENSIONS
             and all(type(n) is int and n >= 0 for n in shape))
    order = range(len(shape)) if sized and order is None else order
    ordered = (sized and isinstance(order, (tuple, list, range)) and len(order) == len(shape)
               and all(type(d) is int for d in order) and sorted(order) == list(range(len(shape))))
    known = isinstance(data, (bytes, bytearray, memoryview)) and isinstance(dtype, str) and dtype in _DTYPES
    if not (ordered and known and len(data) == math.prod(shape) * _DTYPES[dtype].itemsize):
        size = f"{len(data)} bytes" if isinstance(data, (bytes, bytearray, memoryview)) else type(data).__name__
        rest = "unknown dtype, shape or order"
        if ordered and known:            # otherwise they may be anything, of any length
            rest = f"dtype {dtype}, shape {list(shape)}, order {list(order)}"
        raise ValueError(f"a stored tensor of {size}, {rest} does not fit together")
    if not data:
        return torch.empty(tuple(shape), dtype=_DTYPES[dtype])
    flat = torch.frombuffer(bytearray(data) if isinstance(data, bytes) else data, dtype=_DTYPES[dtype])
    return flat.view([shape[d] for d in order]).permute([list(order).index(d) for d in range(len(shape))])


# ---------------------------------------------------------------------------------------------------------------------
# Object -> meta.

def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(obj: Any) -> dict[str, Any]:
    """What is stored of a persistent object, with its own tensors; `rebuild` makes the object again."""
    if not is_persistent(obj):
        raise pickle.PicklingError(f"{_full_name(type(obj))} extends a persistent class but is not persistent itself; "
                                   "decorate it with @persistent_class")
    if isinstance(obj, torch.nn.Module):
        state = module_state.get_state(obj)
    else:
        state = {name: value for name, value in obj.__dict__.items() if name not in ("_init_args", "_init_kwargs")}
    return dict(type="class", version=FORMAT_VERSION, class_name=_full_name(type(obj)),
                init_args=module_state.plain(obj.__dict__["_init_args"]),
                init_kwargs=module_state.plain(obj.__dict__["_init_kwargs"]), state=state)


def _reduce(self: Any, protocol: int) -> tuple:
    meta = describe(self)
    if isinstance(self, torch.nn.Module):
        meta["state"]["tensors"] = {name: StoredTensor(tensor) for name, tensor in meta["state"]["tensors"].items()}
    return _reconstruct_persistent_obj, (meta,)


def _refuse_attributes(self: Any, state: Any) -> None:
    """Our pickles have no attributes for a finished module. A file that has some wants to tamper with the module."""
    raise UserError(f"the file tries to change attributes of {_full_name(type(self))}")


def _deepcopy(self: Any, memo: dict) -> Any:
    """Without this method, copy.deepcopy would call the constructor."""
    clone = memo[id(self)] = type(self).__new__(type(self))
    clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return clone


# ---------------------------------------------------------------------------------------------------------------------
# Meta -> object.

def _reconstruct_persistent_obj(meta: dict) -> Any:
    """The object that `meta` describes. Files name this function. Raises UserError where class, arguments or tensors
    do not fit.
    """
    meta = apply_import_hooks(meta)
    return get_obj_by_name(RELEASED_FORMAT)(meta) if "module_src" in meta else rebuild(meta)


def apply_import_hooks(meta: dict) -> EasyDict:
    """What the hooks make of it, with today's class name. Raises UserError unless it is a dict with a class name."""
    if not isinstance(meta, dict):
        raise UserError(f"a network stored as {type(meta).__name__}, expected a dict of class name and state")
    meta = EasyDict(meta)
    for hook in _import_hooks:
        meta = hook(meta)
        assert isinstance(meta, dict), f"an import hook returned {meta!r}, expected the meta dict"
    name = meta.get("class_name")
    if not isinstance(name, str) or len(name) > 200:         # it appears in messages
        what = "longer than 200 letters" if isinstance(name, str) else type(name).__name__
        raise UserError(f"a network whose class name is {what}, expected the name of a class")
    meta.class_name = RENAMED.get(name, name)
    return meta


def rebuild(meta: dict, may_lack: str = "", kept_dtypes: Collection[torch.dtype] = COMPUTING_DTYPES) -> Any:
    """The object of a description in our own format.

    Where the state lacks tensors whose names match the pattern `may_lack`, the constructor's values stay. Tensors of
    this project's classes keep the `kept_dtypes` and are converted from others; tensors of users' classes keep all.
    Raises UserError where class, arguments and tensors do not fit together.
    """
    name, args, kwargs, state = (meta.get(key) for key in ("class_name", "init_args", "init_kwargs", "state"))
    if not isinstance(name, str):
        raise UserError(f"an entry whose class name is {type(name).__name__}, expected the name of a class")
    if not (isinstance(args, (tuple, list)) and isinstance(kwargs, dict) and isinstance(state, dict)):
        raise UserError(f"the entry for the class {name!r} is incomplete; "
                        "expected class_name, init_args, init_kwargs and state")
    cls = resolve_class(name)
    if not issubclass(cls, torch.nn.Module):
        obj = cls.__new__(cls)
        obj.__dict__.update(_init_args=tuple(args), _init_kwargs=dict(kwargs), **state)
        return obj
    is_ours = _is_ours(name)
    try:
        return module_state.restore(cls, args, kwargs, state, is_ours, may_lack, kept_dtypes if is_ours else None)
    except UserError as error:
        raise UserError(f"{name}: {error.format_message()}") from error


def rebuild_like(module: torch.nn.Module, **changes: Any) -> torch.nn.Module:
    """A module of the same class with copies of the tensors, the same flags and some init arguments changed. Returns
    the module itself if nothing would change.
    """
    assert is_persistent(module) and isinstance(module, torch.nn.Module), type(module)
    signature = inspect.signature(type(module))
    bound = signature.bind(*module.init_args, **module.init_kwargs).arguments
    kwargs = {}
    for name, value in bound.items():
        kwargs.update(value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    if all(name in kwargs and kwargs[name] == value for name, value in changes.items()):
        return module
    state = module_state.get_state(module)
    state["tensors"] = {name: tensor.detach().clone() for name, tensor in state["tensors"].items()}
    return rebuild(dict(class_name=_full_name(type(module)), init_args=(), init_kwargs={**kwargs, **changes},
                        state=state))


def resolve_class(name: str) -> type:
    """The persistent class of that full name. Imports modules of this project only. Raises UserError for an unknown
    class.
    """
    if name not in _classes and _is_ours(name):
        module = name.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module + ".").startswith(error.name + "."):
                raise
    if name not in _classes:
        hint = "this version of the project does not have it" if _is_ours(name) else \
            "import the module that defines it, with @persistent_class, before loading the file"
        raise UserError(f"the file needs the class {name!r}, which is not known; {hint}")
    return _classes[name]


def _is_ours(name: str) -> bool:
    parts = name.split(".")
    return len(parts) >= 3 and parts[0] in OWN_PACKAGES and all(part.isidentifier() for part in parts)
