"""What detectors ask of a data set: a hash of its content, its images in chunks, which images show the same scene."""

from __future__ import annotations

import contextlib
import functools
import os
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from json import dumps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError, parse_json
from training.data.archives import LABEL_FILE, DataError, open_files, plain_name, walk
from training.data.images import list_images
from training.data.labels import meet_names

CHUNK = 64                               # images
THREADS = 4


def data_hash(dataset_kwargs: dict) -> str:
    """64 hexadecimal digits that tell data sets apart. Options such as xflip do not count.

    A zip is known by the names, sizes and checksums in its directory; a folder by names, sizes and times of change.
    Raises UserError if the data cannot be read, KeyError if dataset_kwargs has no path.
    """
    given = dataset_kwargs["path"]
    path = os.path.abspath(given)
    try:
        if os.path.isdir(path):
            entries = _folder_entries(path)
        else:
            entries = _zip_entries(path, os.stat(path).st_mtime_ns, os.path.getsize(path))
    except FileNotFoundError as error:
        raise UserError(f"--data={given}: there is no such file or folder; check the path") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"--data={given}: not a zip, or one cut short ({error}); expected a folder or a zip of "
                        "images") from error
    except OSError as error:
        raise UserError(f"--data={given}: cannot be read: {error.strerror or error}") from error
    return digest(sorted(entries))


def _folder_entries(path: str) -> list[list]:
    entries = []
    for name in walk(path)[0]:
        with contextlib.suppress(OSError):                  # a broken link; the data set refuses it if it is an image
            state = os.stat(os.path.join(path, name))
            entries.append([name, state.st_size, state.st_mtime_ns])
    return entries


@functools.lru_cache(maxsize=8)
def _zip_entries(path: str, mtime_ns: int, size: int) -> list[list]:
    """mtime_ns and size are part of the cache's key: a zip that has changed is read again."""
    with zipfile.ZipFile(path) as archive:
        return [[info.filename, info.file_size, info.CRC] for info in archive.infolist() if not info.is_dir()]


def digest(document: Any) -> str:
    """sha256 of the document as JSON."""
    return sha256(dumps(document).encode()).hexdigest()


def read_chunks(dataset: Any, chunks: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Yields the images of each chunk of item numbers, [B] -> uint8 [B, C, H, W]. Threads read ahead of the caller."""
    def load(items: np.ndarray) -> Tensor:
        return torch.from_numpy(np.stack([dataset[int(item)][0] for item in items]))

    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[Future] = deque()
        for items in chunks:
            ahead.append(pool.submit(load, items))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


# ---------------------------------------------------------------------------------------------------------------------
# Its scenes: dataset.json may hold "scenes": [["IMAGE NAME", SCENE], ...], as that of the procedural data sets does.

def read_scene_ids(path: str) -> np.ndarray | None:
    """The number of the scene of each image, int64 [N], counted from 0; None if the data do not name scenes.

    Images come in the order of `ImageFolderDataset` (raw_idx). Raises DataError if only some of them have a scene.
    """
    files = open_files(path)
    try:
        if LABEL_FILE not in files.names:
            return None
        try:
            document = parse_json(files.read(LABEL_FILE))
        except ValueError:
            return None                  # the data set itself says what is wrong with the file
        names, _ = list_images(files)
        where = files.locate(LABEL_FILE)
    finally:
        files.close()
    pairs = document.get("scenes") if isinstance(document, dict) else None
    if pairs is None:
        return None
    try:
        entries = pairs.items() if isinstance(pairs, dict) else pairs
        table = {plain_name(str(name)): str(scene) for name, scene in entries}
    except (TypeError, ValueError) as error:
        raise DataError(f'{where}: "scenes" is not a list of ["IMAGE NAME", SCENE] pairs ({error})') from error
    table = meet_names(table, names)
    absent = [name for name in names if name not in table]
    if absent:
        extra = min(table.keys() - set(names), default=None)
        entry = "" if extra is None else f" (an entry without an image is that of {extra})"
        raise DataError(f'{where}: {len(absent)} of {len(names)} images have no entry in "scenes", the first is '
                        f'{absent[0]}{entry}; name them all, or remove "scenes"')
    return np.unique([table[name] for name in names], return_inverse=True)[1].reshape(-1).astype(np.int64)


def shows_scenes_again(scene_ids: np.ndarray | None) -> bool:
    """Do two or more images show the same scene?"""
    return scene_ids is not None and len(scene_ids) > 0 and int(np.bincount(scene_ids).max()) >= 2
