"""Attribute dicts, user errors, objects by name, files and downloads, durations, the machine.

All of StyleGAN3's `dnnlib.util` is here; `dnnlib.screen` and `dnnlib.stylegan_helpers` define some of it.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import glob
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import re
import sys
import types
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import click

from dnnlib.screen import EXIT_BROKEN_PIPE, Logger, Screen, run_program, silence
from dnnlib.stylegan_helpers import (
    ask_yes_no,
    copy_files_and_create_dirs,
    get_dtype_and_ctype,
    get_top_level_function_name,
    is_pickleable,
    is_top_level_function,
    list_dir_recursively_with_ignore,
    tuple_product,
)

__all__ = [
    "CONTROL", "EXIT_BROKEN_PIPE", "EasyDict", "Logger", "RENAMED", "Screen", "UserError", "ask_yes_no",
    "call_func_by_name", "closest", "construct_class_by_name", "copy_files_and_create_dirs", "format_time",
    "format_time_brief",
    "get_dtype_and_ctype", "get_module_dir_by_obj_name", "get_module_from_obj_name", "get_obj_by_name",
    "get_obj_from_module", "get_top_level_function_name", "is_at_hand", "is_pickleable", "is_top_level_function",
    "is_url", "list_dir_recursively_with_ignore", "make_cache_dir_path", "naming", "open_url", "open_whole",
    "parse_json", "run_program", "set_cache_dir", "silence", "tuple_product", "usable_cores", "without_control",
]

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")           # characters that end a line or steer a terminal


class EasyDict(dict):
    """A dict whose string keys can also be read and written as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no key {name!r}; there are {sorted(map(str, self))}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"no key {name!r}")
        del self[name]


class UserError(click.ClickException, ValueError):
    """A mistake in what the user gave. The message is one line: which flag or file, the value, what was expected, what
    to do.

    Commands built on click print it as `Error: ...` and exit with code 1; scripts can catch it as a ValueError.
    """

    def __init__(self, message: str):
        super().__init__(without_control(" ".join(message.split())))


def without_control(text: str) -> str:
    """The text with control characters, which names from files may hold, written as escapes: \\x1b."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


@contextlib.contextmanager
def naming(option: str, value: object, file_first: bool = False) -> Iterator[None]:
    """A UserError raised inside names this option and its value, unless it names another option.

    file_first: messages that begin with the value, which is a file, keep that order and name the option last.
    """
    try:
        yield
    except UserError as error:
        said = f"{option}={value}"
        if error.message.startswith("--") and not error.message.startswith(f"{option}: ") or said in error.message:
            raise
        if file_first and error.message.startswith(f"{value}: "):
            raise UserError(f"{error.message} ({option})") from error
        message = error.message.removeprefix(f"{option}: ").removeprefix(f"{value}: ").removesuffix(f": {value}")
        raise UserError(f"{said}: {message}") from error


def closest(name: str, names: Iterable[str]) -> str:
    """For messages: "did you mean X? " with the one of `names` most like `name`, ignoring case; "" if none is like it.
    """
    spelled = {known.lower(): known for known in names}
    found = difflib.get_close_matches(str(name).lower(), spelled, n=1, cutoff=0.4)
    return f"did you mean {spelled[found[0]]}? " if found else ""


# ---------------------------------------------------------------------------------------------------------------------
# Objects from names. A configuration stores `class_name="training.loss.StyleGAN2Loss"` beside the arguments.

# Classes that moved: their name in older network files and configurations -> their name today.
RENAMED = {f"training.{old}.{name}": f"training.networks.{new}.{name}" for old, new, names in (
    ("discriminator",   "discriminator",    "Discriminator DiscriminatorBlock DiscriminatorEpilogue MinibatchStdLayer"),
    ("layers",          "generator",        "MappingNetwork"),
    ("layers",          "layers",           "Conv2dLayer FullyConnectedLayer"),
) for name in names.split()}


def get_module_from_obj_name(obj_name: str) -> tuple[types.ModuleType, str]:
    """'package.module.object[.attribute]' -> the module, the rest of the name. Raises ImportError."""
    parts = re.sub(r"^np\.", "numpy.", RENAMED.get(obj_name, obj_name)).split(".")
    for split in range(len(parts), 0, -1):
        module_name, rest = ".".join(parts[:split]), ".".join(parts[split:])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Go on only if there is no such module. If an import inside the module fails, that must be seen.
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise
        try:
            get_obj_from_module(module, rest)
        except AttributeError as error:
            raise ImportError(f"{module_name} has no {rest!r}") from error
        return module, rest
    raise ImportError(f"nothing importable is called {obj_name!r}")


def get_obj_from_module(module: types.ModuleType, obj_name: str) -> Any:
    """The object called `object[.attribute]` in the module; the module for an empty name. Raises AttributeError."""
    return functools.reduce(getattr, obj_name.split("."), module) if obj_name else module


def get_module_dir_by_obj_name(obj_name: str) -> str:
    """The folder of the file that defines the object with that dotted name."""
    return os.path.dirname(inspect.getfile(get_module_from_obj_name(obj_name)[0]))


def get_obj_by_name(name: str) -> Any:
    """The object called `package.module.object[.attribute]`. Raises ImportError if there is none."""
    return get_obj_from_module(*get_module_from_obj_name(name))


def call_func_by_name(*args: Any, func_name: str, **kwargs: Any) -> Any:
    """Calls the function with that dotted name."""
    func = get_obj_by_name(func_name)
    assert callable(func), func_name
    return func(*args, **kwargs)


def construct_class_by_name(*args: Any, class_name: str, **kwargs: Any) -> Any:
    """Builds an instance of the class with that dotted name."""
    return call_func_by_name(*args, func_name=class_name, **kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# Files and addresses.

def parse_json(data: bytes | str) -> Any:
    """JSON in UTF-8, with or without the byte order mark of Windows' editors, or in UTF-16 or -32. Raises ValueError.

    Integers too large for a float become infinite, as too large fractions do.
    """
    try:
        return json.loads(data.removeprefix("\ufeff") if isinstance(data, str) else data, parse_int=_parse_int)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parse_int(text: str) -> int | float:
    return int(text) if len(text) < sys.float_info.max_10_exp else float(text)


_cache_dir: str | None = None            # what set_cache_dir was given


def set_cache_dir(path: str | os.PathLike | None) -> None:
    """Sets the cache folder of this process, which then ignores $DNNLIB_CACHE_DIR. None: back to the default."""
    global _cache_dir
    _cache_dir = None if path is None else os.fspath(path)


def make_cache_dir_path(*paths: str) -> str:
    """A path inside the cache folder (set_cache_dir, else $DNNLIB_CACHE_DIR, else ~/.cache/dnnlib). Creates nothing."""
    root = _cache_dir or os.path.expanduser(os.environ.get("DNNLIB_CACHE_DIR", ""))
    root = root or os.path.join(Path.home(), ".cache", "dnnlib")
    return os.path.join(root, *paths)


def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """True for http and https addresses, and for file addresses if they are allowed."""
    if not isinstance(obj, str):
        return False
    address = urllib.parse.urlparse(obj)
    if address.scheme == "file":
        return allow_file_urls
    return address.scheme in ("http", "https") and bool(address.netloc)


def open_url(url: str | os.PathLike, cache_dir: str | None = None, num_attempts: int = 5, verbose: bool = True,
             return_filename: bool = False, cache: bool = True) -> BinaryIO | str:
    """Opens a local path, a file: address or an http(s) address for reading.

    Downloads are kept under `cache_dir` (default: `make_cache_dir_path("downloads")`). They appear there whole or not
    at all. With `return_filename`, returns the local path instead of a stream. Raises UserError if the path or address
    cannot be read.
    """
    url = os.fspath(url)
    assert num_attempts >= 1, num_attempts
    assert cache or not return_filename, "a file name needs a cached copy"
    parsed = urllib.parse.urlparse(url)
    if parsed.scheme not in ("http", "https"):
        path = urllib.parse.unquote(parsed.path) if parsed.scheme == "file" else url
        if not os.path.isfile(path):
            raise UserError(f"no such file: {path}")
        return path if return_filename else open(path, "rb")

    folder = cache_dir or make_cache_dir_path("downloads")
    digest = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
    if cache and (hits := _downloaded(folder, digest)):
        return hits[0] if return_filename else open(hits[0], "rb")

    data, name = _download(url, num_attempts, verbose)
    if not cache:
        return io.BytesIO(data)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{digest}_{re.sub(r'[^0-9A-Za-z._-]', '_', name)}")
    with open_whole(path) as stream:
        stream.write(data)
    return path if return_filename else io.BytesIO(data)


def _downloaded(folder: str, digest: str) -> list[str]:
    return [name for name in glob.glob(os.path.join(glob.escape(folder), digest + "_*")) if not name.endswith(".part")]


def is_at_hand(url: str) -> bool:
    """Whether open_url would read that path or address from this machine."""
    digest = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
    is_local = urllib.parse.urlparse(url).scheme not in ("http", "https")
    return is_local or bool(_downloaded(make_cache_dir_path("downloads"), digest))


@contextlib.contextmanager
def open_whole(path: str | os.PathLike, text: bool = False) -> Iterator[IO]:
    """`with open_whole(path) as stream:` writes a file whole or not at all: under another name, flushed to the disk,
    then renamed. `text`: UTF-8 instead of bytes.
    """
    part = f"{os.fspath(path)}.{os.getpid()}.part"
    try:
        with open(part, "w" if text else "wb", encoding="utf-8" if text else None) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
        _flush_folder(os.path.dirname(part) or ".")
    except BaseException:
        if os.path.exists(part):         # a full disk, an interrupt
            os.remove(part)
        raise


def _flush_folder(folder: str) -> None:
    """Makes a new name in the folder last. Some systems cannot open folders; then only the file itself is safe."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _download(url: str, num_attempts: int, verbose: bool) -> tuple[bytes, str]:
    """Body and file name behind an http(s) address."""
    import requests  # only downloads pay for this import

    for attempt in range(num_attempts):
        try:
            if verbose:
                print(f"Downloading {url} ...", file=sys.stderr, flush=True)
            response = requests.get(url, timeout=60)
            response.raise_for_status()
            if not response.content:
                raise requests.RequestException("the answer was empty")
            return response.content, _response_name(response.headers.get("Content-Disposition", ""), url)
        except requests.RequestException as error:
            if attempt + 1 == num_attempts:
                raise UserError(f"cannot download {url}: {error}; "
                                "check address and network, or fetch it by hand and give its path") from error
    raise AssertionError("unreachable")


def _response_name(content_disposition: str, url: str) -> str:
    match = re.search(r'filename="?([^";]+)', content_disposition)
    return (match.group(1) if match else os.path.basename(urllib.parse.urlparse(url).path)) or "download"


# ---------------------------------------------------------------------------------------------------------------------
# Durations.

def format_time(seconds: int | float) -> str:
    """A duration with all its units from the largest down: 1d 02h 03m."""
    days, hours, minutes, secs = _split(seconds)
    if days:
        return f"{days}d {hours:02d}h {minutes:02d}m"
    if hours:
        return f"{hours}h {minutes:02d}m {secs:02d}s"
    return f"{minutes}m {secs:02d}s" if minutes else f"{secs}s"


def format_time_brief(seconds: int | float) -> str:
    """A duration with its two largest units: 1d 02h."""
    days, hours, minutes, secs = _split(seconds)
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {secs:02d}s" if minutes else f"{secs}s"


def _split(seconds: int | float) -> tuple[int, int, int, int]:
    total = int(round(seconds))
    return total // 86400, total // 3600 % 24, total // 60 % 60, total % 60


# ---------------------------------------------------------------------------------------------------------------------
# The machine.

def usable_cores() -> int:
    """How many cores this process may keep busy: those that it is bound to, at most its control group's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(bound, _cpu_quota())))


# Quota and period of control groups, version 2 and 1.
CPU_QUOTA_FILES = (("/sys/fs/cgroup/cpu.max",),
                   ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"))


def _cpu_quota() -> float:
    """How many cores' time the control group grants; infinity without a limit."""
    for files in CPU_QUOTA_FILES:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):       # 'max' and -1: no limit
            texts = [Path(file).read_text(encoding="ascii") for file in files]
            quota, period = (float(number) for text in texts for number in text.split())
            if quota > 0:
                return quota / period
    return math.inf
