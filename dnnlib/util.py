"""Attribute dicts, user errors, construction of objects from names, cached downloads, log files, durations."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import glob
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import pickle
import re
import shutil
import sys
import types
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

import click

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
    """A mistake in what the user gave. The message is one line: which flag or file, the value, what was expected, what to do.

    Commands built on click print it as `Error: ...` and exit with code 1; scripts can catch it as a ValueError.
    """

    def __init__(self, message: str):
        super().__init__(without_control(" ".join(message.split())))


def without_control(text: str) -> str:
    """Control characters, which names from files may hold, as escapes: \\x1b."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


@contextlib.contextmanager
def naming(option: str, value: object, file_first: bool = False) -> Iterator[None]:
    """A UserError in it says which option it is about, and that option's value, unless it names another one.

    file_first: messages that begin with the value, a file, stay so and name the option last.
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
    """"did you mean X? " for messages, X being the one of `names` most like `name`, whatever the case; "" where none resembles it."""
    spelled = {known.lower(): known for known in names}
    found = difflib.get_close_matches(str(name).lower(), spelled, n=1, cutoff=0.4)
    return f"did you mean {spelled[found[0]]}? " if found else ""


# ---------------------------------------------------------------------------------------------------------------------
# Objects from names. A configuration stores `class_name="training.loss.StyleGAN2Loss"` beside the arguments.

def get_module_from_obj_name(obj_name: str) -> tuple[types.ModuleType, str]:
    """'package.module.object[.attribute]' -> the module, the rest of the name. Raises ImportError."""
    parts = re.sub(r"^np\.", "numpy.", obj_name).split(".")
    for split in range(len(parts), 0, -1):
        module_name, rest = ".".join(parts[:split]), ".".join(parts[split:])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Only "there is no such module" lets the search go on; a failing import inside the module must be seen.
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


def get_obj_by_name(name: str) -> Any:
    """The module-level object called `package.module.object[.attribute]`. Raises ImportError where there is none."""
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

    Integers that no float can hold become infinite, as such fractions do.
    """
    try:
        return json.loads(data.removeprefix("\ufeff") if isinstance(data, str) else data, parse_int=_parse_int)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parse_int(text: str) -> int | float:
    return int(text) if len(text) < sys.float_info.max_10_exp else float(text)


_cache_dir: str | None = None            # from set_cache_dir


def set_cache_dir(path: str | os.PathLike | None) -> None:
    """Puts the cache folder of this process there, whatever $DNNLIB_CACHE_DIR says. None: back to the default."""
    global _cache_dir
    _cache_dir = None if path is None else os.fspath(path)


def make_cache_dir_path(*paths: str) -> str:
    """A path inside the cache folder (set_cache_dir, else $DNNLIB_CACHE_DIR, else ~/.cache/dnnlib). Creates nothing."""
    root = _cache_dir or os.path.expanduser(os.environ.get("DNNLIB_CACHE_DIR", "")) or os.path.join(Path.home(), ".cache", "dnnlib")
    return os.path.join(root, *paths)


def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """True for http and https addresses, and for file addresses where they are allowed."""
    if not isinstance(obj, str):
        return False
    address = urllib.parse.urlparse(obj)
    if address.scheme == "file":
        return allow_file_urls
    return address.scheme in ("http", "https") and bool(address.netloc)


def open_url(url: str | os.PathLike, cache_dir: str | None = None, num_attempts: int = 5, verbose: bool = True,
             return_filename: bool = False, cache: bool = True) -> BinaryIO | str:
    """Opens a local path, a file: address or an http(s) address for reading.

    Downloads are kept under `cache_dir` (default: `make_cache_dir_path("downloads")`), written aside and renamed, so an
    interrupted download is never picked up. With `return_filename` the local path is returned instead of a stream.
    Raises UserError where the path or address cannot be read.
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
    """Would open_url read that path or address from this machine?"""
    digest = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
    is_local = urllib.parse.urlparse(url).scheme not in ("http", "https")
    return is_local or bool(_downloaded(make_cache_dir_path("downloads"), digest))


@contextlib.contextmanager
def open_whole(path: str | os.PathLike, text: bool = False) -> Iterator[IO]:
    """`with open_whole(path) as stream:` writes a file whole or not at all: aside, flushed to the disk, renamed. `text`: UTF-8, not bytes."""
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
    """Makes a new name in it last. Not everywhere can a folder be opened, and the file itself is safe."""
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
                raise UserError(f"cannot download {url}: {error}; check address and network, or fetch it by hand and give its path") from error
    raise AssertionError("unreachable")


def _response_name(content_disposition: str, url: str) -> str:
    match = re.search(r'filename="?([^";]+)', content_disposition)
    return (match.group(1) if match else os.path.basename(urllib.parse.urlparse(url).path)) or "download"


# ---------------------------------------------------------------------------------------------------------------------
# What people read.

class Screen:
    """stdout or stderr on which printing ends no run.

    Characters that its encoding lacks become escapes. Where it is None, closed or gone, text goes nowhere. Only a reader
    that leaves (`| head`) is still a BrokenPipeError: that ends a command.
    """

    def __init__(self, stream: Any):
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream

    def write(self, text: str) -> int:
        with _going_nowhere():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with _going_nowhere():
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:               # it is closed
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _going_nowhere() -> Iterator[None]:
    """Within, it is no error to write to a closed stream (ValueError), to a terminal that is gone or to a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError):
        pass


EXIT_BROKEN_PIPE = 141                   # as shells have it for programs that SIGPIPE ends


def run_program(command: click.Command) -> NoReturn:
    """Runs the command as this program. Where the reader of its output goes away (`| head`), it ends quietly, with
    EXIT_BROKEN_PIPE.
    """
    code, stdout = 0, sys.stdout
    try:
        command.main()
    except SystemExit as end:
        code = end.code or 0
        if sys.stdout is not stdout:                    # what click does, with code 1, when it meets a broken pipe
            code = EXIT_BROKEN_PIPE
    except BrokenPipeError:              # while it told of an error
        code = EXIT_BROKEN_PIPE
    for stream in (sys.__stdout__, sys.__stderr__):     # Python would complain at its end of what is left in them
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            code = code or EXIT_BROKEN_PIPE
        except (OSError, ValueError):
            code = code or 1
        else:
            continue
        silence(stream)
    sys.exit(code)


def silence(stream: Any) -> None:
    """What is written to this stream from now on, and what is left in it, goes nowhere: it has no reader any more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):      # streams without a file behind them
        target = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, target)
        os.close(nowhere)


class Logger:
    """While open, copies all that is printed (stdout; with `should_flush` at once) and all errors into a file as well.

    `reader_gone` is called where the reader of stdout or stderr has gone (`| head`); the file goes on. None: that is
    a BrokenPipeError. A terminal that has gone is no error; it tells its programs by SIGHUP.
    """

    def __init__(self, file_name: str | None = None, file_mode: str = "w", should_flush: bool = True,
                 reader_gone: Callable[[], None] | None = None):
        self.file = open(file_name, file_mode, encoding="utf-8", errors="backslashreplace") if file_name else None
        self.should_flush = should_flush
        self.reader_gone = reader_gone
        self._saved = (sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = (_Tee(self, stream) for stream in self._saved)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def write(self, text: str | bytes) -> None:
        """Writes into the log file only."""
        text = text.decode() if isinstance(text, bytes) else text
        if self.file is None or not text or text.startswith("\r"):     # redrawn progress bars are for the screen
            return
        self.file.write(text)
        if self.should_flush:
            self.file.flush()

    def flush(self) -> None:
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Gives the streams back and closes the file. May be called twice."""
        for stream, saved in zip(("stdout", "stderr"), self._saved):
            tee = getattr(sys, stream)
            if isinstance(tee, _Tee) and tee.logger is self:
                setattr(sys, stream, saved)
        if self.file is not None:
            self.file.close()
            self.file = None


class _Tee:
    """A text stream that passes everything on to the screen and to a Logger's file."""

    def __init__(self, logger: Logger, stream: Any):
        self.logger, self.stream = logger, Screen(stream)

    def write(self, text: str) -> int:
        self.logger.write(text)
        self._on_screen(lambda: self.stream.write(text))
        if self.logger.should_flush:
            self._on_screen(self.stream.flush)
        return len(text)

    def flush(self) -> None:
        self.logger.flush()
        self._on_screen(self.stream.flush)

    def _on_screen(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BrokenPipeError:
            if self.logger.reader_gone is None:
                raise
            silence(self.stream)
            self.logger.reader_gone()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


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
    """How many cores this process may keep busy: those that it is bound to, and no more than its control group's
    quota of time.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(bound, _cpu_quota())))


# Quota and period of control groups, version 2 and 1.
CPU_QUOTA_FILES = (("/sys/fs/cgroup/cpu.max",),
                   ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"))


def _cpu_quota() -> float:
    """Cores' worth of time that the control group grants; infinity where nothing limits it."""
    for files in CPU_QUOTA_FILES:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):       # 'max' and -1: there is no limit
            texts = [Path(file).read_text(encoding="ascii") for file in files]
            quota, period = (float(number) for text in texts for number in text.split())
            if quota > 0:
                return quota / period
    return math.inf


# ---------------------------------------------------------------------------------------------------------------------
# Not used in this project: scripts written for StyleGAN2 and 3 call these.

def get_module_dir_by_obj_name(obj_name: str) -> str:
    """The folder of the file that defines the object with that dotted name."""
    return os.path.dirname(inspect.getfile(get_module_from_obj_name(obj_name)[0]))


def is_top_level_function(obj: Any) -> bool:
    """Can the object be called, and found in its module under its name?"""
    name, module = getattr(obj, "__name__", None), sys.modules.get(getattr(obj, "__module__", None) or "")
    return callable(obj) and name is not None and getattr(module, name, None) is obj


def get_top_level_function_name(obj: Any) -> str:
    """Its dotted name, by which `get_obj_by_name` finds it. The module of the script that runs is its file."""
    assert is_top_level_function(obj), f"{obj!r} is not defined at the top of a module"
    module = obj.__module__
    if module == "__main__":
        module = os.path.splitext(os.path.basename(sys.modules[module].__file__))[0]
    return f"{module}.{obj.__name__}"


def list_dir_recursively_with_ignore(dir_path: str | os.PathLike, ignores: Iterable[str] | None = None,
                                     add_base_to_relative: bool = False) -> list[tuple[str, str]]:
    """(path, path relative to `dir_path`) of each file below it, but for files and folders whose names match `ignores`.

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
    """The product of its numbers; 1 where there are none."""
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
