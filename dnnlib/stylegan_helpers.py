"""Helpers that this project does not use. Scripts written for StyleGAN2 and 3 call them as dnnlib.util's."""

from __future__ import annotations

import fnmatch
import math
import os
import pickle
import shutil
import sys
from collections.abc import Iterable
from typing import Any


def is_top_level_function(obj: Any) -> bool:
    """Whether the object can be called, and be found in its module under its name."""
    name, module = getattr(obj, "__name__", None), sys.modules.get(getattr(obj, "__module__", None) or "")
    return callable(obj) and name is not None and getattr(module, name, None) is obj


def get_top_level_function_name(obj: Any) -> str:
    """Its dotted name, by which `get_obj_by_name` finds it. For the running script, the file's name is the module."""
    assert is_top_level_function(obj), f"{obj!r} is not defined at the top of a module"
    module = obj.__module__
    if module == "__main__":
        module = os.path.splitext(os.path.basename(sys.modules[module].__file__))[0]
    return f"{module}.{obj.__name__}"


def list_dir_recursively_with_ignore(dir_path: str | os.PathLike, ignores: Iterable[str] | None = None,
                                     add_base_to_relative: bool = False) -> list[tuple[str, str]]:
    """(path, path relative to `dir_path`) of each file below it, except files and folders whose names match `ignores`.

    With `add_base_to_relative` the relative paths begin with the name of `dir_path`.
    """
    def kept(names: list[str]) -> list[str]:
        return sorted(name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignores or ()))

    assert os.path.isdir(dir_path), f"{dir_path} is not a folder"
    base = os.path.basename(os.path.abspath(dir_path)) if add_base_to_relative else ""
    found = []
    for folder, folders, files in os.walk(dir_path):
        folders[:] = kept(folders)
        found += [os.path.join(folder, name) for name in kept(files)]
    return [(path, os.path.join(base, os.path.relpath(path, dir_path))) for path in found]


def copy_files_and_create_dirs(files: Iterable[tuple[str, str]]) -> None:
    """Copies the contents of files, given as (source, destination); makes the folders that are missing."""
    for source, destination in files:
        os.makedirs(os.path.dirname(destination) or ".", exist_ok=True)
        shutil.copyfile(source, destination)


def ask_yes_no(question: str) -> bool:
    """Asks on the terminal until the answer is yes or no."""
    while True:
        answer = input(f"{question} [y/n] ").strip().lower()
        if answer in ("y", "yes", "t", "true", "on", "1"):
            return True
        if answer in ("n", "no", "f", "false", "off", "0"):
            return False


def tuple_product(t: Iterable[int]) -> int:
    """The product of the numbers; 1 for an empty tuple."""
    return math.prod(t)


def get_dtype_and_ctype(type_obj: Any) -> tuple[Any, Any]:
    """The numpy type and the ctypes type of a number type: 'uint8', np.float32, np.dtype('int64') and so on."""
    import numpy as np  # only this function needs it

    dtype = np.dtype(type_obj)
    return dtype, np.ctypeslib.as_ctypes_type(dtype)


def is_pickleable(obj: Any) -> bool:
    try:
        pickle.dumps(obj)
    except Exception:                    # whatever an object's own code raises, it cannot be pickled
        return False
    return True
