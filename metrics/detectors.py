"""Detectors: TorchScript networks that turn images into the features that metrics compare.

Calling convention: images [N, 3, H, W] in the range of uint8, any size -> float [N, D]. What else a call says depends on its use,
see detector_kinds. A kind's file is the one that the user names (--detector=FILE), else the one that `calc_metrics.py prepare` put
into the cache.

The sha256 of a file in the cache is recorded beside it when it is first seen (and is a detector), and compared whenever it is used again.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from typing import Any

import torch

from dnnlib.util import UserError, get_obj_by_name, make_cache_dir_path, open_url, open_whole
from metrics.detector_kinds import KINDS, PUBLISHED, Kind, kind_of
from metrics.known_files import compare_hash, record_hash, sha256_of
from metrics.stats_cache import data_hash

__all__ = ["Detector", "KINDS", "Kind", "check", "data_hash", "find", "kind_of", "load", "prepare", "require", "sha256_of"]

PROBE_SIZE = 64                          # pixels per side of the images that a new detector is tried on
NO_SCRIPT = (RuntimeError, ValueError, OSError, EOFError)       # what torch.jit.load raises about files that it cannot read


class Detector:
    """A loaded detector."""

    def __init__(self, kind: Kind, module: Any, path: str, device: torch.device, extra: dict[str, str]):
        self.kind, self.path, self.device = kind, path, device
        self.module = module
        self.extra = extra               # text by the name in Kind.extra_files; '' where the file lacks it
        self.sha256 = sha256_of(path)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, use: str | dict = "features") -> torch.Tensor:
        """images: [N, 1 or 3, H, W] in 0 .. 255, any dtype. Returns float32 [N, D]."""
        images = images.to(self.device, torch.float32)
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return self.module(images, **self.kind.call(use)).to(torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Which file.

def find(name: str, use: str, given: dict[str, str], files: tuple[str, ...] = (), dataset_kwargs: dict | None = None) -> str:
    """Path of the detector of that kind: given by kind, among `files` (the first that suits the use), or in the cache.

    Raises UserError, one line, where there is none; whether a given file works is for `check` to say.
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
    path = kind.cached_path(dataset_kwargs)
    if os.path.isfile(path):
        return path
    raise UserError(f"--detector={files[0]}: there is no {kind.name} detector among the files given (say {kind.flag}=FILE), nor in the cache")


# ---------------------------------------------------------------------------------------------------------------------
# Loading and judging.

def load(name: str, path: str, device: torch.device | str) -> Detector:
    """The detector in that file. Raises UserError, one line, where it holds none, or is not what it was when first seen."""
    kind = kind_of(name)
    flag = f"{kind.flag}={path}"
    refuse_other_files(flag, path)
    known = compare_hash(path)
    extra: dict[str, Any] = {file: "" for file in kind.extra_files}
    try:
        module = _load_script(path, device, extra)
    except NO_SCRIPT as error:
        remedy = f"remove it (and {path}.sha256), then run `python calc_metrics.py prepare` again" if _is_cached(path) else kind.remedy({})
        raise UserError(f"{flag}: not a TorchScript file, or a damaged one ({_first_sentence(error)}); {remedy}") from error
    if not known and _is_cached(path):
        with contextlib.suppress(OSError):              # a cache that others keep
            record_hash(path)
    return Detector(kind, module, path, torch.device(device), {file: text.decode() if isinstance(text, bytes) else text for file, text in extra.items()})


def _load_script(source: str | io.BytesIO, device: torch.device | str, extra: dict[str, Any] | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)             # torch would rather have another format than that of the published files
        return torch.jit.load(source, map_location=device, _extra_files=extra).eval()


@functools.cache
def _checked(name: str, use: str, path: str, sha256: str) -> None:
    """Calls it once on two images of noise."""
    detector = load(name, path, "cpu")
    kind = detector.kind
    images = torch.randint(256, [2, 3, PROBE_SIZE, PROBE_SIZE], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    keywords = ", ".join(f"{key}={value}" for key, value in kind.uses[use].items())
    call = f"{kind.flag}={path}: called with images [2, 3, {PROBE_SIZE}, {PROBE_SIZE}]" + (f" and {keywords}" if keywords else "")
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
        raise UserError(f"{call} it gives rows that are no probabilities (from {features.min():.3g}, summing to {features[0].sum():.3g}); "
                        f"{expected} with class probabilities")


def check(name: str, use: str, path: str) -> None:
    """Does the file serve that use? Raises UserError, one line, where it does not. Draws nothing from global generators."""
    refuse_other_files(f"{KINDS[name].flag}={path}", path)
    with torch.random.fork_rng(devices=[]):             # a script could draw
        _checked(name, use, path, sha256_of(path))


def refuse_other_files(flag: str, path: str) -> None:
    """UserError, about `flag`, where the file at `path` cannot be a TorchScript file."""
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


def _first_sentence(error: Exception) -> str:
    """Of a TorchScript error the last line says what is wrong, the first ones where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in reversed(lines) if "Error" in line or "xpected" in line or "nknown" in line), lines[0])
    return line.partition(". ")[0].rstrip(".")[:200]


# ---------------------------------------------------------------------------------------------------------------------
# Into the cache.

def require(name: str, dataset_kwargs: dict) -> None:
    """Is that kind in the cache, or can it be put there? Raises UserError where not. Quick: nothing is fetched or trained."""
    kind = KINDS[name]
    if kind.require is not None and not os.path.isfile(kind.cached_path(dataset_kwargs)):
        get_obj_by_name(kind.require)(dataset_kwargs)


def prepare(name: str, dataset_kwargs: dict, device: str = "cpu") -> str:
    """Makes sure that the cache has a file of that kind and that it is the one first seen; returns its path. Raises UserError.

    device: 'cpu' or 'cuda', for kinds that are trained.
    """
    kind = KINDS[name]
    path = kind.cached_path(dataset_kwargs)
    if not os.path.isfile(path):
        require(name, dataset_kwargs)
        _write(path, lambda: _download(kind, path) if kind.url is not None else get_obj_by_name(kind.make)(dataset_kwargs, path, device))
    load(name, path, "cpu")
    return path


def _download(kind: Kind, path: str) -> None:
    """Writes the published file, if it is one that torch can load."""
    try:
        with open_url(kind.url, cache=False, num_attempts=2) as stream:
            content = stream.read()
    except UserError as error:
        raise UserError(f"cannot fetch {kind.url} (no network?); fetch it elsewhere and put it at {path}, or give {kind.flag}=FILE") from error
    try:
        _load_script(io.BytesIO(content), "cpu")
    except NO_SCRIPT as error:
        raise UserError(f"{kind.url}: what came ({len(content)} bytes) is no TorchScript file; a proxy's page, or cut short? Try again, or fetch it "
                        f"elsewhere and put it at {path}, or give {kind.flag}=FILE") from error
    with open_whole(path) as stream:
        stream.write(content)


def _write(path: str, write: Any) -> None:
    """Calls `write` with the folder in place; a folder that cannot be written is the user's to change."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; set DNNLIB_CACHE_DIR to a folder that you may write to") from error


def _is_cached(path: str) -> bool:
    return os.path.abspath(path).startswith(os.path.abspath(make_cache_dir_path("detectors")) + os.sep)
