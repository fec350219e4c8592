"""Statistics of real images on disk, so that only the first evaluation on a data set reads it all.

The key is a hash of everything that they depend on: the data, the detector, the resolution, the options.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import zipfile
from typing import Any

import numpy as np

from dnnlib.util import UserError, make_cache_dir_path, open_whole
from training.image_files import walk

FORMAT = 3                               # to be raised when the same key comes to mean other numbers
# Arguments of a data set that the hash, the items and the image shape say better.
NO_MATTER = ("path", "use_labels", "max_size", "random_seed", "resolution", "num_channels")


def data_hash(dataset_kwargs: dict) -> str:
    """Which data these are: of a zip by the names, sizes and checksums in its directory, of a folder by names, sizes and times of change.

    Options such as xflip are no part of it. Raises UserError where the data cannot be read, KeyError where they have no path.
    """
    path = os.path.abspath(dataset_kwargs["path"])
    try:
        entries = _folder_entries(path) if os.path.isdir(path) else _zip_entries(path, os.stat(path).st_mtime_ns, os.path.getsize(path))
    except FileNotFoundError as error:
        raise UserError(f"--data={dataset_kwargs['path']}: there is no such file or folder; check the path") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"--data={dataset_kwargs['path']}: not a zip, or one cut short ({error}); expected a folder or a zip of images") from error
    except OSError as error:
        raise UserError(f"--data={dataset_kwargs['path']}: cannot be read: {error.strerror or error}") from error
    return _digest(sorted(entries))


def _folder_entries(path: str) -> list[list]:
    entries = []
    for name in walk(path)[0]:
        with contextlib.suppress(OSError):                  # a link to nothing; as an image the data set refuses it
            state = os.stat(os.path.join(path, name))
            entries.append([name, state.st_size, state.st_mtime_ns])
    return entries


@functools.lru_cache(maxsize=8)
def _zip_entries(path: str, mtime_ns: int, size: int) -> list[list]:
    """`mtime_ns` and `size` only tell a file that has changed since from what it was."""
    with zipfile.ZipFile(path) as archive:
        return [[info.filename, info.file_size, info.CRC] for info in archive.infolist() if not info.is_dir()]


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def path_of(dataset_kwargs: dict, image_shape: list[int], detector_sha256: str, kind: str, call: dict, items: np.ndarray, capture_all: bool,
            capture_mean_cov: bool) -> str | None:
    """Where the statistics of these items belong, numbers in the data set without max_size. None: such data (of a class without a path) are not cached."""
    if "path" not in dataset_kwargs:
        return None
    options = {"xflip": False, **{name: value for name, value in dataset_kwargs.items() if name not in NO_MATTER}}
    key = _digest([FORMAT, data_hash(dataset_kwargs), sorted(options.items()), list(image_shape), detector_sha256, sorted(call.items()),
                   hashlib.sha256(items.tobytes()).hexdigest(), capture_all, capture_mean_cov])
    return make_cache_dir_path("metrics", f"{kind}-{key[:40]}.npz")


def read(path: str, stats: Any) -> bool:
    """Fills the FeatureStats from that file; False where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            stats.take_arrays({name: archive[name] for name in archive.files})
        return True
    except FileNotFoundError:
        return False
    except Exception as error:           # whatever numpy and zipfile raise about a damaged file
        print(f"{path}: a damaged cache file ({type(error).__name__}); its statistics are computed again")
        return False


def write(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all. A cache that cannot be written costs time, not the result."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open_whole(path) as stream:
            np.savez(stream, **arrays)
    except OSError as error:
        print(f"{path}: cannot keep the statistics of the real images ({error.strerror or error}); they will be computed again next time")
