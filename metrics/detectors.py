"""Detectors: TorchScript networks that turn images into the features that metrics compare.

Calling convention: images [N, 3, H, W] in the range of uint8, any size -> float [N, D]. What else a call says depends on its use,
see KINDS. A kind's file is the one that the user names (--detector=FILE), else the one that `calc_metrics.py prepare` put
into the cache.

The sha256 of a file in the cache is recorded beside it when it is first seen and compared whenever it is used again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dnnlib.util import UserError, make_cache_dir_path, open_url, open_whole
from metrics.stats_cache import data_hash

__all__ = ["Detector", "KINDS", "Kind", "check", "data_hash", "find", "load", "prepare", "sha256_of"]

PUBLISHED = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
PROBE_SIZE = 64                          # pixels per side of the images that a new detector is tried on


@dataclass(frozen=True)
class Kind:
    """A row of the table of detectors."""

    name:           str
    uses:           dict[str, dict]                     # Use -> keywords of the call.
    option:         str | None          = None          # How the user gives a file; None: --detector=NAME=FILE.
    dim:            int | None          = None          # Number of features D that it must have; None: any.
    extra_files:    tuple[str, ...]     = ()            # Text stored in the TorchScript file, for Detector.extra.
    cached_path:    Callable[[dict], str] | None = None         # dataset_kwargs -> its place in the cache.
    make:           Callable[[dict, str], None] | None = None   # (dataset_kwargs, path): puts it there, whole or not at all.
    automatic:      bool                = False         # Is `make` a mere download, that may happen unasked?
    remedy:         Callable[[dict], str] | None = None         # dataset_kwargs -> what to do where there is none, a clause.


class Detector:
    """A loaded detector."""

    def __init__(self, kind: Kind, module: Any, path: str, device: torch.device, extra: dict[str, str]):
        self.kind, self.path, self.device = kind, path, device
        self.module = module
        self.extra = extra               # text by the name in Kind.extra_files; '' where the file lacks it
        self.sha256 = sha256_of(path)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, use: str = "features") -> torch.Tensor:
        """images: [N, 1 or 3, H, W] in 0 .. 255, any dtype. Returns float32 [N, D]."""
        images = images.to(self.device, torch.float32)
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return self.module(images, **self.kind.uses[use]).to(torch.float32)


def _published(name: str, file_name: str, uses: dict[str, dict]) -> Kind:
    """A kind whose default file NVIDIA has published."""
    url = PUBLISHED + file_name

    def cached_path(dataset_kwargs: dict) -> str:
        return make_cache_dir_path("detectors", file_name)

    def make(dataset_kwargs: dict, path: str) -> None:
        try:
            with open_url(url, cache=False, num_attempts=2) as stream, open_whole(path) as file:
                file.write(stream.read())
        except UserError as error:
            raise UserError(f"cannot fetch {url} (no network?); fetch it elsewhere and put it at {path}, or give --detector={name}=FILE") from error

    def remedy(dataset_kwargs: dict) -> str:
        return f"fetch {url} into {cached_path({})} (`python calc_metrics.py prepare` does), or give --detector={name}=FILE"

    return Kind(name=name, uses=uses, cached_path=cached_path, make=make, automatic=True, remedy=remedy)


KINDS = {kind.name: kind for kind in [
    _published("inception", "inception-2015-12-05.pt", {"features": dict(return_features=True), "probabilities": dict(no_output_bias=True)}),
    _published("vgg16", "vgg16.pt", {"features": dict(return_features=True), "lpips": dict(resize_images=False, return_lpips=True)}),
]}


# ---------------------------------------------------------------------------------------------------------------------
# Which file.

def find(name: str, use: str, given: dict[str, str], files: tuple[str, ...] = (), dataset_kwargs: dict | None = None) -> str:
    """Path of the detector of that kind: given by kind, among `files` (the first that suits the use), or in the cache.

    Raises UserError, one line, where there is none; whether a given file works is for `check` to say.
    """
    kind = KINDS[name]
    if name in given:
        return given[name]
    if files and kind.option is None:
        return _suitable(kind, use, files, dataset_kwargs or {})
    path = kind.cached_path(dataset_kwargs or {}) if kind.cached_path is not None else None
    if path is not None and os.path.isfile(path):
        return path
    raise UserError(f"there is no {name} detector on this machine; {_remedy(kind, dataset_kwargs or {})}")


def _remedy(kind: Kind, dataset_kwargs: dict) -> str:
    return kind.remedy(dataset_kwargs) if kind.remedy is not None else f"give one with {option_of(kind)}=FILE"


def option_of(kind: Kind) -> str:
    return kind.option or f"--detector={kind.name}"


def _suitable(kind: Kind, use: str, files: tuple[str, ...], dataset_kwargs: dict) -> str:
    """Among files whose kind the user has not said: one that is called so, else one that is not called otherwise and can be called so."""
    def named(file: str, name: str) -> bool:
        return name.lower() in os.path.basename(file).lower()

    ours = [file for file in files if named(file, kind.name)]
    if ours:
        return ours[0]
    open_ones = [file for file in files if not any(named(file, other) for other in KINDS)]
    problems = []
    for file in open_ones:
        try:
            check(kind.name, use, file)
            return file
        except UserError as error:
            problems.append(error.message)
    if problems:
        raise UserError(problems[0])
    path = kind.cached_path(dataset_kwargs) if kind.cached_path is not None else ""
    if os.path.isfile(path):
        return path
    raise UserError(f"--detector={files[0]}: there is no {kind.name} detector among the files given (say {option_of(kind)}=FILE), nor in the cache")


# ---------------------------------------------------------------------------------------------------------------------
# Loading and judging.

def load(name: str, path: str, device: torch.device | str) -> Detector:
    """The detector in that file. Raises UserError, one line, where it holds none, or is not what it was when first seen."""
    kind = KINDS[name]
    flag = f"{option_of(kind)}={path}"
    _refuse_other_files(flag, path)
    _compare_hash(path, in_cache=_is_cached(path))
    extra: dict[str, Any] = {file: "" for file in kind.extra_files}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)         # torch would rather have another format than that of the published files
            module = torch.jit.load(path, map_location=device, _extra_files=extra).eval()
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise UserError(f"{flag}: not a TorchScript file, or a damaged one ({_first_line(error)}); {_remedy(kind, {})}") from error
    return Detector(kind, module, path, torch.device(device), {file: text.decode() if isinstance(text, bytes) else text for file, text in extra.items()})


@functools.cache
def _checked(name: str, use: str, path: str, sha256: str) -> None:
    """Calls it once on two images of noise."""
    detector = load(name, path, "cpu")
    flag = f"{option_of(detector.kind)}={path}"
    images = torch.randint(256, [2, 3, PROBE_SIZE, PROBE_SIZE], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    keywords = ", ".join(f"{key}={value}" for key, value in detector.kind.uses[use].items())
    call = f"called with images [2, 3, {PROBE_SIZE}, {PROBE_SIZE}]" + (f" and {keywords}" if keywords else "")
    try:
        features = detector(images, use)
    except Exception as error:           # a script may raise whatever it likes
        raise UserError(f"{flag}: {call} it fails ({_first_line(error)}); expected a {name} detector") from error
    if features.ndim != 2 or len(features) != 2 or features.shape[1] < 1:
        raise UserError(f"{flag}: {call} it gives {list(features.shape)}, expected [2, D]; expected a {name} detector")
    if detector.kind.dim not in (None, features.shape[1]):
        raise UserError(f"{flag}: {call} it gives {features.shape[1]} numbers per image, expected {detector.kind.dim}; expected a {name} detector")
    if not torch.isfinite(features).all():
        raise UserError(f"{flag}: {call} it gives numbers that are not finite; expected a {name} detector")
    if use == "probabilities" and not (features.min() >= 0 and torch.allclose(features.sum(dim=1), torch.ones(2), atol=1e-2)):
        raise UserError(f"{flag}: {call} it gives rows that are no probabilities (from {features.min():.3g}, summing to {features[0].sum():.3g}); "
                        f"expected an {name} detector with class probabilities")


def check(name: str, use: str, path: str) -> None:
    """Does the file serve that use? Raises UserError, one line, where it does not. Draws nothing from global generators."""
    flag = f"{option_of(KINDS[name])}={path}"
    _refuse_other_files(flag, path)
    with torch.random.fork_rng(devices=[]):             # a script could draw
        _checked(name, use, path, sha256_of(path))


def _refuse_other_files(flag: str, path: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"{flag}: there is no such file; expected a TorchScript detector (.pt)")
    try:
        with open(path, "rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise UserError(f"{flag}: cannot be read: {error.strerror or error}") from error
    if path.lower().endswith((".pkl", ".pickle")) or (len(head) > 1 and head[0] == 0x80 and head[1] <= 5):
        raise UserError(f"{flag}: a pickle, such as StyleGAN3's detectors are; opening it would run what is in it. Give the TorchScript file of "
                        f"StyleGAN2-ADA-PyTorch instead: {PUBLISHED}")


def _first_line(error: Exception) -> str:
    """Of a TorchScript error the last line says what is wrong, the first ones where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if "Error" in line or "xpected" in line or "nknown" in line), lines[0])[:160]


# ---------------------------------------------------------------------------------------------------------------------
# Into the cache.

def prepare(name: str, dataset_kwargs: dict) -> str:
    """Makes sure that the cache has a file of that kind and that it is the one first seen; returns its path. Raises UserError."""
    kind = KINDS[name]
    if kind.cached_path is None or kind.make is None:
        raise UserError(f"a {name} detector can only be given as a file: {_remedy(kind, dataset_kwargs)}")
    path = kind.cached_path(dataset_kwargs)
    if not os.path.isfile(path):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            kind.make(dataset_kwargs, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}; set DNNLIB_CACHE_DIR to a folder that you may write to") from error
    _compare_hash(path, in_cache=True)
    return path


def _is_cached(path: str) -> bool:
    return os.path.abspath(path).startswith(os.path.abspath(make_cache_dir_path()) + os.sep)


def _compare_hash(path: str, in_cache: bool) -> None:
    """With the one recorded beside the file; where there is none yet, and the file is in the cache, records it."""
    record, actual = path + ".sha256", sha256_of(path)
    try:
        with open(record, encoding="utf-8") as stream:
            expected = (stream.read().split() or [""])[0]
    except FileNotFoundError:
        if in_cache:
            with open_whole(record, text=True) as stream:
                stream.write(f"{actual}  {os.path.basename(path)}\n")
        return
    if actual != expected:
        raise UserError(f"{path}: its sha256 is {actual[:12]}..., but {expected[:12]}... was recorded in {record} when it was first seen; "
                        "the file has changed: remove both to fetch it anew")


def sha256_of(path: str) -> str:
    """Of the file's content, 64 hexadecimal digits. Raises UserError where it cannot be read."""
    try:
        state = os.stat(path)
        return _sha256(os.path.abspath(path), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


@functools.lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
