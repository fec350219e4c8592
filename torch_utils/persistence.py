"""Networks in pickle files: class name, init arguments and tensors, never source code.

    @persistent_class
    class MyNetwork(torch.nn.Module): ...

    net = MyNetwork(16, act="relu")
    net.init_args, net.init_kwargs           # what it was built with
    with open("net.pkl", "wb") as stream:
        dump(net, stream)                    # or pickle.dump: also a file without code
    net = pickle.load(open("net.pkl", "rb"))

A module comes back by calling its constructor with the stored arguments and putting the stored tensors in their places: its
parameters, buffers, training and requires_grad flags. Whatever else was changed after construction is not stored. A
persistent object that is no module comes back with its attributes. Tensors come back on the CPU.

Files in the released format of StyleGAN2-ADA-PyTorch, StyleGAN3 and ray conditioning embed source code. It is ignored:
`released_format` tells which of our classes the tensors belong to.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import os
import pickle
from collections.abc import Callable, Collection
from typing import Any, BinaryIO, TypeVar

import torch

from dnnlib.util import EasyDict, UserError, open_whole
from torch_utils import module_state, released_format, tensorflow_format
from torch_utils.tensor_bytes import StoredTensor

__all__ = ["describe", "dump", "import_hook", "is_persistent", "persistent_class", "rebuild", "rebuild_like", "save"]

FORMAT_VERSION = 7                       # 6 and below: the released format

# Packages whose modules a file may have imported. Classes from elsewhere must have been imported by whoever loads the file.
OWN_PACKAGES = ("training", "metrics", "inversion", "torch_utils")

COMPUTING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)     # of weights, in which our networks compute

FOREIGN_MODULES = "_trusted_source_"     # how the modules begin that trusted_source makes of the code in a file: no other process has them

_classes: dict[str, type] = {}           # full name -> class, of all persistent classes
_import_hooks: list[Callable] = []

T = TypeVar("T", bound=type)


def persistent_class(cls: T) -> T:
    """Class decorator: instances know their init arguments (`init_args`, `init_kwargs`: copies) and pickle without code.

    A subclass needs the decorator too, else its instances cannot be pickled (they would come back as their base class).
    """
    assert isinstance(cls, type), f"{cls!r}, expected a class"
    constructor = cls.__init__

    @functools.wraps(constructor)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_init_args" not in self.__dict__:          # the constructor of the instance's own class comes before those of its bases
            self.__dict__["_init_args"] = copy.deepcopy(args)
            self.__dict__["_init_kwargs"] = copy.deepcopy(kwargs)
        constructor(self, *args, **kwargs)

    cls.__init__ = __init__
    cls.init_args = property(lambda self: copy.deepcopy(self.__dict__["_init_args"]), doc="Positional arguments it was built with, a copy.")
    cls.init_kwargs = property(lambda self: EasyDict(copy.deepcopy(self.__dict__["_init_kwargs"])), doc="Keyword arguments likewise.")
    cls.__reduce_ex__ = _reduce
    if not hasattr(cls, "__deepcopy__"):
        cls.__deepcopy__ = _deepcopy
    if getattr(cls, "__setstate__", None) is torch.nn.Module.__setstate__:
        cls.__setstate__ = _refuse_attributes
    _classes[_full_name(cls)] = cls
    return cls


def is_persistent(obj: Any) -> bool:
    """Whether that class, or the class of that object, is a persistent one."""
    cls = obj if isinstance(obj, type) else type(obj)
    return _classes.get(_full_name(cls)) is cls and not cls.__module__.startswith(FOREIGN_MODULES)


def import_hook(hook: Callable[[EasyDict], EasyDict]) -> None:
    """Registers `hook(meta) -> meta`, which may change what a file says of an object before it is rebuilt.

    `meta` has type, version, class_name and state; our own files also have init_args and init_kwargs, released ones
    module_src (never executed) and the arguments inside of state.
    """
    assert callable(hook), hook
    _import_hooks.append(hook)


def dump(obj: Any, stream: BinaryIO) -> None:
    """Pickles `obj` into an open file (protocol 5), all tensors as plain bytes. Needs memory for one tensor, not for all."""
    _Pickler(stream, protocol=5).dump(obj)


def save(obj: Any, path: str | os.PathLike) -> None:
    """`dump` into a file that is written aside, flushed to the disk and renamed: readers never meet half of it."""
    with open_whole(path) as stream:
        dump(obj, stream)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return StoredTensor(obj).__reduce_ex__(5) if type(obj) is torch.Tensor else NotImplemented


# ---------------------------------------------------------------------------------------------------------------------
# Object -> meta.

def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(obj: Any) -> dict[str, Any]:
    """What is stored of a persistent object; `rebuild` makes it again."""
    if not is_persistent(obj):
        raise pickle.PicklingError(f"{_full_name(type(obj))} extends a persistent class and is none itself; decorate it with @persistent_class")
    if isinstance(obj, torch.nn.Module):
        state = module_state.get_state(obj)
    else:
        state = {name: value for name, value in obj.__dict__.items() if name not in ("_init_args", "_init_kwargs")}
    return dict(type="class", version=FORMAT_VERSION, class_name=_full_name(type(obj)), init_args=module_state.plain(obj.__dict__["_init_args"]),
                init_kwargs=module_state.plain(obj.__dict__["_init_kwargs"]), state=state)


def _reduce(self: Any, protocol: int) -> tuple:
    return _reconstruct_persistent_obj, (describe(self),)


def _refuse_attributes(self: Any, state: Any) -> None:
    """No pickle of ours has attributes for a finished module; a file that does wants to tamper with it."""
    raise UserError(f"the file tries to change attributes of {_full_name(type(self))}")


def _deepcopy(self: Any, memo: dict) -> Any:
    """Without it, copy.deepcopy would go through the constructor."""
    clone = memo[id(self)] = type(self).__new__(type(self))
    clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return clone


# ---------------------------------------------------------------------------------------------------------------------
# Meta -> object. Files name this function (and tensor_bytes.decode).

def _reconstruct_persistent_obj(meta: dict) -> Any:
    """The object that `meta` describes. Raises UserError where its class, arguments or tensors do not fit."""
    meta = apply_import_hooks(meta)
    if "module_src" not in meta:
        return rebuild(meta)
    part = released_format.Part.from_meta(meta)
    if part.is_inner:
        return part                      # the network around it takes its tensors
    if part.class_name == "AugmentPipe":
        return _rebuild_augment_pipe(part)
    return rebuild(released_format.translate(part))


def from_tensorflow(networks: Any) -> dict[str, torch.nn.Module]:
    """The networks G, D and G_ema in a file of the TensorFlow era."""
    return {name: rebuild(meta, may_lack=r".*\bresample_filter") for name, meta in tensorflow_format.translate(networks).items()}


def apply_import_hooks(meta: dict) -> EasyDict:
    """What the hooks make of it. Raises UserError where it is no description of an object."""
    if not isinstance(meta, dict):
        raise UserError(f"a network stored as {type(meta).__name__}, expected a dict of class name and state")
    meta = EasyDict(meta)
    for hook in _import_hooks:
        meta = hook(meta)
        assert isinstance(meta, dict), f"an import hook returned {meta!r}, expected the meta dict"
    name = meta.get("class_name")
    if not isinstance(name, str) or len(name) > 200:         # it appears in messages
        raise UserError(f"a network whose class name is {type(name).__name__}{' of more than 200 letters' if isinstance(name, str) else ''}")
    return meta


def rebuild(meta: dict, may_lack: str = "", kept_dtypes: Collection[torch.dtype] = COMPUTING_DTYPES) -> Any:
    """The object of a description in our own format. Tensors whose names match `may_lack` keep the constructor's values where the state has none.
    Tensors of this project's classes keep the `kept_dtypes` and are converted from others; tensors of users' classes keep all.
    Raises UserError where class, arguments and tensors do not fit together.
    """
    name, args, kwargs, state = (meta.get(key) for key in ("class_name", "init_args", "init_kwargs", "state"))
    fits = isinstance(name, str) and isinstance(args, (tuple, list)) and isinstance(kwargs, dict) and isinstance(state, dict)
    if not fits:
        raise UserError(f"the entry for the class {name!r} is incomplete; expected class_name, init_args, init_kwargs and state")
    cls = resolve_class(name)
    if not issubclass(cls, torch.nn.Module):
        obj = cls.__new__(cls)
        obj.__dict__.update(_init_args=tuple(args), _init_kwargs=dict(kwargs), **state)
        return obj
    tensors = state.get("tensors")
    stored = sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, torch.Tensor)) if isinstance(tensors, dict) else 0
    try:
        module = module_state.construct(cls, args, kwargs, is_ours=_is_ours(name), stored_elements=stored)
    except UserError as error:
        raise UserError(f"{name}: {error.format_message()}") from error
    except Exception as error:           # whatever a constructor makes of arguments that are not its own
        raise UserError(f"{name} cannot be built from the init arguments in the file: {type(error).__name__}: {error}") from error
    module_state.set_state(module, state, name, may_lack, kept_dtypes if _is_ours(name) else None)
    return module


def _rebuild_augment_pipe(part: released_format.Part) -> Any:
    """Its filters are constants, of which ours keeps its own; `p` is all that a run changes."""
    meta = released_format.translate_augment_pipe(part)
    try:
        resolve_class(meta["class_name"])
    except UserError:
        return part
    return rebuild(meta, may_lack=".*")


def rebuild_like(module: torch.nn.Module, **changes: Any) -> torch.nn.Module:
    """A module of the same class with copies of its tensors and the same flags, some init arguments changed. Itself if nothing would change."""
    assert is_persistent(module) and isinstance(module, torch.nn.Module), type(module)
    signature = inspect.signature(type(module))
    bound = signature.bind(*module.init_args, **module.init_kwargs).arguments
    kwargs = {}
    for name, value in bound.items():
        kwargs.update(value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    if all(name in kwargs and kwargs[name] == value for name, value in changes.items()):
        return module
    state = module_state.get_state(module)
    state["tensors"] = {name: stored.tensor.detach().clone() for name, stored in state["tensors"].items()}
    return rebuild(dict(class_name=_full_name(type(module)), init_args=(), init_kwargs={**kwargs, **changes}, state=state))


def resolve_class(name: str) -> type:
    """The persistent class of that full name. Imports at most a module of this project, else UserError."""
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
