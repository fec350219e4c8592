"""The files of detectors: which one is used, whether it works, and how it gets into the cache.

A kind's file is the one that the user gives (--detector=FILE), else the one that `calc_metrics.py prepare` put into the
cache. The sha256 of a cached file is kept beside it, in FILE.sha256, and compared at each use, so that a change shows.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dnnlib.util import UserError, make_cache_dir_path, open_url, open_whole
from metrics.detectors.kinds import KINDS, PUBLISHED, Kind, kind_of

PROBE_SIZE = 64                          # pixels per side of the images that a detector is tried on
NO_SCRIPT = (RuntimeError, ValueError, OSError, EOFError)       # what torch.jit.load raises about unreadable files


class Detector:
    """A loaded detector."""

    def __init__(self, kind: Kind, module: Any, path: str, device: torch.device, extra: dict[str, str]):
        self.kind, self.path, self.device = kind, path, device
        self.module = module
        self.extra = extra               # name in Kind.extra_files -> text, '' if the file lacks it
        self.sha256 = sha256_of(path)

    @torch.no_grad()
    def __call__(self, images: Tensor, use: str | dict = "features") -> Tensor:
        """images: [N, 1 or 3, H, W], 0 to 255, any dtype. Returns float32 [N, D]."""
        images = images.to(self.device, torch.float32)
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return self.module(images, **self.kind.call(use)).to(torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Which file.

def find(name: str, use: str, given: dict[str, str], files: tuple[str, ...] = (),
         dataset_kwargs: dict | None = None) -> str:
    """Path of the detector of that kind: given by kind, else one of `files` that suits the use, else in the cache.

    Raises UserError if there is none. Does not try the file that it finds; `check` does.
    """
    kind = kind_of(name)
    if name in given:
        return given[name]
    if files and kind.option is None:
        return _suitable(kind, use, files, dataset_kwargs or {})
    path = kind.cached_path(dataset_kwargs or {})
    if os.path.isfile(path):
        return path
    raise UserError(f"there is no {name} detector on this machine; {kind.remedy(dataset_kwargs or {})}")


def _suitable(kind: Kind, use: str, files: tuple[str, ...], dataset_kwargs: dict) -> str:
    """Of files given without a kind: one named after this kind; else one named after no kind that passes `check`."""
    def named(file: str, name: str) -> bool:
        return name.lower() in os.path.basename(file).lower()

    ours = [file for file in files if named(file, kind.name)]
    if ours:
        return ours[0]
    problems = []
    for file in files:
        if any(named(file, other) for other in KINDS):
            continue
        try:
            check(kind.name, use, file)
            return file
        except UserError as error:
            problems.append(error.message)
    if problems:
        raise UserError(problems[0])
    path = kind.cached_path(dataset_kwargs)
    if os.path.isfile(path):
        return path
    raise UserError(f"--detector={files[0]}: there is no {kind.name} detector among the files given "
                    f"(say {kind.flag}=FILE), nor in the cache")


# ---------------------------------------------------------------------------------------------------------------------
# Loading and checking.

def load(name: str, path: str, device: torch.device | str) -> Detector:
    """The detector in that file. Raises UserError for a file that is not TorchScript or has changed in the cache."""
    kind = kind_of(name)
    flag = f"{kind.flag}={path}"
    refuse_other_files(flag, path)
    known = compare_hash(path)
    extra: dict[str, Any] = {file: "" for file in kind.extra_files}
    try:
        module = _load_script(path, device, extra)
    except NO_SCRIPT as error:
        remedy = kind.remedy({})
        if _is_cached(path):
            remedy = f"remove it (and {path}.sha256), then run `python calc_metrics.py prepare` again"
        problem = f"not a TorchScript file, or a damaged one ({_first_sentence(error)})"
        raise UserError(f"{flag}: {problem}; {remedy}") from error
    if not known and _is_cached(path):
        with contextlib.suppress(OSError):              # a shared cache may be read-only
            record_hash(path)
    texts = {file: text.decode() if isinstance(text, bytes) else text for file, text in extra.items()}
    return Detector(kind, module, path, torch.device(device), texts)


def _load_script(source: str | io.BytesIO, device: torch.device | str, extra: dict[str, Any] | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)     # of TorchScript, the format of the published files
        return torch.jit.load(source, map_location=device, _extra_files=extra).eval()


@functools.cache
def _checked(name: str, use: str, path: str, sha256: str) -> None:
    """Calls the detector on two images of noise, once for each content of the file. Raises UserError."""
    detector = load(name, path, "cpu")
    kind = detector.kind
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, [2, 3, PROBE_SIZE, PROBE_SIZE], generator=draw).to(torch.uint8)
    keywords = ", ".join(f"{key}={value}" for key, value in kind.uses[use].items())
    call = f"{kind.flag}={path}: called with images {list(images.shape)}" + (f" and {keywords}" if keywords else "")
    expected = f"expected {kind.with_article}"
    try:
        features = detector(images, use)
    except Exception as error:           # a script may raise whatever it likes
        raise UserError(f"{call} it fails ({_first_sentence(error)}); {expected}") from error
    if features.ndim != 2 or len(features) != 2 or features.shape[1] < 1:
        raise UserError(f"{call} it gives {list(features.shape)}, expected [2, D]; {expected}")
    if kind.dim not in (None, features.shape[1]):
        raise UserError(f"{call} it gives {features.shape[1]} numbers per image, expected {kind.dim}; {expected}")
    if not torch.isfinite(features).all():
        raise UserError(f"{call} it gives numbers that are not finite; {expected}")
    if use == "probabilities" and not (features.min() >= 0 and bool((features.sum(dim=1) - 1).abs().max() <= 1e-2)):
        raise UserError(f"{call} it gives rows that are no probabilities (from {features.min():.3g}, summing to "
                        f"{features[0].sum():.3g}); {expected} with class probabilities")


def check(name: str, use: str, path: str) -> None:
    """Raises UserError if the file is not a detector for that use. Torch's global generators keep their state."""
    refuse_other_files(f"{KINDS[name].flag}={path}", path)
    with torch.random.fork_rng(devices=[]):             # a detector could draw random numbers
        _checked(name, use, path, sha256_of(path))


def refuse_other_files(flag: str, path: str) -> None:
    """Raises UserError if the file is missing, unreadable or a pickle. flag: how the message calls it."""
    if not os.path.isfile(path):
        raise UserError(f"{flag}: there is no such file; expected a TorchScript detector (.pt)")
    try:
        with open(path, "rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise UserError(f"{flag}: cannot be read: {error.strerror or error}") from error
    if path.lower().endswith((".pkl", ".pickle")) or (len(head) > 1 and head[0] == 0x80 and head[1] <= 5):
        raise UserError(f"{flag}: a pickle, such as StyleGAN3's detectors are; opening it would run the code in it. "
                        f"Give the TorchScript file of StyleGAN2-ADA-PyTorch instead: {PUBLISHED}")


def _first_sentence(error: Exception) -> str:
    """The gist of an error. The last lines of a TorchScript error say what is wrong, the first ones where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = [line for line in lines if "Error" in line or "xpected" in line or "nknown" in line]
    line = (telling or lines[:1])[-1]
    return line.partition(". ")[0].rstrip(".")[:200]


# ---------------------------------------------------------------------------------------------------------------------
# The cache.

def require(name: str, dataset_kwargs: dict) -> None:
    """Raises UserError if that kind is not in the cache and cannot be made from the data. Quick: trains nothing."""
    kind = KINDS[name]
    if kind.require is not None and not os.path.isfile(kind.cached_path(dataset_kwargs)):
        kind.require(dataset_kwargs)


def prepare(name: str, dataset_kwargs: dict, device: str = "cpu") -> str:
    """Downloads or trains a detector of that kind if the cache has none; returns its path.

    Raises UserError if that fails or the cached file has changed. device: 'cpu' or 'cuda', for kinds that are trained.
    """
    kind = KINDS[name]
    path = kind.cached_path(dataset_kwargs)
    if not os.path.isfile(path):
        require(name, dataset_kwargs)
        _write(path, lambda: _download(kind, path) if kind.url else kind.make(dataset_kwargs, path, device))
    load(name, path, "cpu")
    return path


def _download(kind: Kind, path: str) -> None:
    """Writes the published file, if torch can load what was downloaded."""
    try:
        with open_url(kind.url, cache=False, num_attempts=2) as stream:
            content = stream.read()
    except UserError as error:
        raise UserError(f"cannot fetch {kind.url} (no network?); fetch it elsewhere and put it at {path}, or give "
                        f"{kind.flag}=FILE") from error
    try:
        _load_script(io.BytesIO(content), "cpu")
    except NO_SCRIPT as error:
        raise UserError(f"{kind.url}: what came ({len(content)} bytes) is no TorchScript file; a proxy's page, or cut "
                        f"short? Try again, or fetch it elsewhere and put it at {path}, or give "
                        f"{kind.flag}=FILE") from error
    with open_whole(path) as stream:
        stream.write(content)


def _write(path: str, write: Callable[[], None]) -> None:
    """Creates the folder of `path` and calls `write`. Raises UserError if the folder cannot be written."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; set DNNLIB_CACHE_DIR to a folder that "
                        "you may write to") from error


def _is_cached(path: str) -> bool:
    return os.path.abspath(path).startswith(os.path.abspath(make_cache_dir_path("detectors")) + os.sep)


def sha256_of(path: str) -> str:
    """sha256 of the file's content, 64 hexadecimal digits. Raises UserError if it cannot be read."""
    try:
        state = os.stat(path)
        return _sha256(os.path.abspath(path), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


@functools.lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """size and mtime_ns are part of the cache's key: a file that has changed is read again."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def compare_hash(path: str) -> bool:
    """Does the file have a recorded hash? Raises UserError if that is not the hash of its content."""
    record, actual = path + ".sha256", sha256_of(path)
    try:
        with open(record, encoding="utf-8", errors="replace") as stream:
            expected = (stream.read().split() or [""])[0]
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{record}: cannot be read: {error.strerror or error}") from error
    if actual != expected:
        raise UserError(f"{path}: its sha256 is {actual[:12]}..., but {expected[:12]}... was recorded in {record} when "
                        "it was first seen; the file has changed: remove both to fetch it anew")
    return True


def record_hash(path: str) -> None:
    """Writes the hash of the file into FILE.sha256."""
    with open_whole(path + ".sha256", text=True) as stream:
        stream.write(f"{sha256_of(path)}  {os.path.basename(path)}\n")
