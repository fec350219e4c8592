"""Network files whose source code may run, because the user trusts them: `--trust`.

Networks that this project has are still rebuilt as its own classes, and their source is not run. For all others the
source in the file is run, once for all modules that share it, as a module of its own. Its classes take the stored
attributes. What such sources import (torch_utils, training, dnnlib, torch, numpy) comes from this project and its
environment.

Such a network can be used but not saved again, since its class exists in this process only.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import types
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

from dnnlib.util import UserError
from network_files import known_names, released_format
from torch_utils import persistence


def load(stream: BinaryIO) -> Any:
    """The object in the stream. Imports and runs what the file asks for. Raises UserError where its source fails."""
    return _finish(_Unpickler(stream).load(), set())         # a part that stands alone is a foreign network, too


class _Unpickler(pickle.Unpickler):
    """Prefers this project's readers, which know storages from GPUs and old names of numpy. Imports all other names."""

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name == known_names.RECONSTRUCT:
            return _reconstruct
        known = known_names.ALLOWED.get(full_name)
        return super().find_class(module, name) if known is None or known.function is None else known.function


@dataclass
class _Part(released_format.Part):
    """A stored module with its source. What becomes of it depends on the network around it."""

    source: str = field(default="", repr=False)
    built: Any = field(default=None, repr=False)             # the module that it became


def _reconstruct(meta: dict) -> Any:
    """Like persistence._reconstruct_persistent_obj, but makes unknown classes from their source."""
    source = meta.get("module_src") if isinstance(meta, dict) else None
    if not isinstance(source, str):
        return persistence._reconstruct_persistent_obj(meta)
    meta = persistence.apply_import_hooks(meta)
    try:
        part = released_format.Part.from_meta(meta)
    except UserError:                    # a class that this project does not have
        return _from_source(meta["class_name"], meta.get("state"), meta["module_src"])
    part = _Part(part.class_name, part.state, meta["module_src"])
    if part.is_inner:
        return part
    if _has_foreign_parts(part):
        return _finish(part, set())
    if part.class_name == "AugmentPipe":
        return released_format.rebuild_augment_pipe(part)
    try:
        description = released_format.translate(part)
    except UserError:
        return _finish(part, set())
    return persistence.rebuild(description)


def _has_foreign_parts(part: released_format.Part) -> bool:
    """Whether modules in it were built from source. `translate` would overlook them."""
    children = [child for child in part.state["_modules"].values() if child is not None]
    return any(not isinstance(child, released_format.Part) or _has_foreign_parts(child) for child in children)


def _finish(value: Any, seen: set[int]) -> Any:
    """The value, with the parts in it replaced by modules. `seen`: the containers that are done, by id."""
    if isinstance(value, _Part):
        value.built = _from_source(value.class_name, value.state, value.source) if value.built is None else value.built
        return value.built
    if type(value) is tuple:
        return tuple(_finish(item, seen) for item in value)
    if id(value) in seen:
        return value
    seen.add(id(value))
    if type(value) is list:
        value[:] = [_finish(item, seen) for item in value]
    elif isinstance(value, (dict, torch.nn.Module)):         # such as torch's own ModuleList
        items = value if isinstance(value, dict) else value.__dict__
        for key, item in items.items():
            items[key] = _finish(item, seen)
    return value


def _from_source(class_name: str, state: Any, source: str) -> Any:
    """An object of the class that the source defines, with these attributes. Its constructor is not called."""
    module = _module_from(source)
    cls = getattr(module, str(class_name), None)
    if not isinstance(cls, type):
        raise UserError(f"the source code in the file does not define its class {class_name!r}")
    obj = cls.__new__(cls)
    state = _finish(state, set())
    own_setter = getattr(cls, "__setstate__", None)
    if own_setter not in (None, persistence._refuse_attributes):
        obj.__setstate__(state)
    elif isinstance(obj, torch.nn.Module):
        torch.nn.Module.__setstate__(obj, state)
    else:
        obj.__dict__.update(state)
    return obj


def _module_from(source: str) -> types.ModuleType:
    """The module that the source makes. Runs the source the first time."""
    name = f"{persistence.FOREIGN_MODULES}{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        module = types.ModuleType(name, "Source code from a network file.")
        sys.modules[name] = module       # dataclasses and torch look for the module of a class there
        try:
            exec(source, module.__dict__)
        except Exception as error:
            del sys.modules[name]
            raise UserError(f"the source code in the file fails with {type(error).__name__}: {error}") from error
    return sys.modules[name]
