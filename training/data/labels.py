"""The labels of a data set, in memory and in dataset.json."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Iterable
from typing import Any

import numpy as np

import camera_utils
from camera_utils.files import LABELS_FORM, describe, label_pairs
from dnnlib.util import UserError, parse_json
from training.data.archives import LABEL_FILE, DataError, FolderFiles, ZipFiles, plain_name

MAX_CLASSES = 2 ** 20
WITHOUT = "or train without labels (--cfg=stylegan2 --cond=0)"


class Labels:
    """One label per image: float32 [N, D], or class numbers int64 [N], which become one-hot vectors. [N, 0]: no labels.

    Labels of 25 numbers are cameras; a mirrored image has the mirrored camera. Mirroring changes no other labels.
    """

    def __init__(self, raw: np.ndarray):
        assert (raw.dtype, raw.ndim) in ((np.float32, 2), (np.int64, 1)), (raw.dtype, raw.shape)
        self.raw = raw
        self.are_classes = raw.ndim == 1
        self.dim = 1 + int(raw.max()) if self.are_classes else raw.shape[1]
        self.are_cameras = not self.are_classes and self.dim == camera_utils.LABEL_DIM

    @functools.cached_property
    def mirrored(self) -> np.ndarray:
        """All cameras mirrored, float32 [N, 25]."""
        assert self.are_cameras, self.describe()
        return camera_utils.Camera.from_label(self.raw).mirror().to_label().numpy()

    def encoded(self, raw_idx: int, mirrored: bool = False) -> np.ndarray:
        """The label that networks get with image `raw_idx`, or its mirror image: float32 [dim], a copy."""
        if self.are_classes:
            return (np.arange(self.dim) == self.raw[raw_idx]).astype(np.float32)
        table = self.mirrored if mirrored and self.are_cameras else self.raw
        return table[raw_idx].copy()

    def describe(self) -> str:
        if self.are_classes:
            return "the labels are class numbers"
        return f"the labels have {self.dim} numbers" if self.dim else "no labels are in use"


# ---------------------------------------------------------------------------------------------------------------------
# The file: {"labels": [["00000/img00000000.png", label], ...]}. A label is a list of numbers or a class number.

def read_labels(files: ZipFiles | FolderFiles, image_names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels of these images, float32 [N, D] or class numbers int64 [N], and notes for the log.

    The notes count labels of other images. Raises DataError unless each image has a label, all of one kind.
    """
    where = files.locate(LABEL_FILE)
    table, notes = _read_table(files, where)
    table = meet_names(table, image_names)
    absent = [name for name in image_names if table.get(name) is None]
    extra = sorted(table.keys() - set(image_names))
    if absent:
        label = f" (a label without an image is that of {extra[0]})" if extra else ""
        raise DataError(f"{where}: {len(absent)} of {len(image_names)} images have no label, the first is "
                        f"{absent[0]}{label}; add their labels, remove the images, {WITHOUT}")
    if extra:
        notes.append(f"{where}: {len(extra)} labels are of images that are not there (the first is {extra[0]}); "
                     "ignored")
    return _as_array([table[name] for name in image_names], image_names, where), notes


def meet_names(table: dict[str, Any], image_names: list[str]) -> dict[str, Any]:
    """The table by the names that the images have. If no names are the same, one side may include a folder around all
    files that the other leaves out.
    """
    if not table or not image_names or any(name in table for name in image_names):
        return table
    theirs, ours = _folder_around(table), _folder_around(image_names)
    moved = {ours + name.removeprefix(theirs): entry for name, entry in table.items()}
    return moved if any(name in moved for name in image_names) else table


def _folder_around(names: Iterable[str]) -> str:
    """'a/b/' if all names begin with it; '' if they share no folder."""
    common = posixpath.commonpath([posixpath.dirname(name) for name in names])
    return common + "/" if common else ""


def _read_table(files: ZipFiles | FolderFiles, where: str) -> tuple[dict[str, Any], list[str]]:
    """Labels by image name, as parsed, and notes."""
    if LABEL_FILE not in files.names:
        nested = min((name for name in files.names if name.endswith("/" + LABEL_FILE)), default=None)
        hint = "write one, or train without labels (--cfg=stylegan2 --cond=0)"
        if nested:
            hint = f"there is {nested}: move it to the top, and name the images from there"
        raise DataError(f"--data={files.path}: labels are wanted (--cond=1, or a raycond preset), "
                        f"but there is no {LABEL_FILE}; {hint}")
    try:
        pairs = label_pairs(parse_json(files.read(LABEL_FILE)), where)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: no text in UTF-8 ({error}); expected {LABELS_FORM}") from error
    except UserError as error:
        raise DataError(f"{error.message}, {WITHOUT}") from error
    except ValueError as error:
        raise DataError(f"{where}: invalid JSON ({error}); expected {LABELS_FORM}") from error
    table: dict[str, Any] = {}
    changed = 0
    for spelled, label in pairs:
        name = plain_name(spelled)
        changed += name in table and table[name] != label
        table[name] = label
    if not changed:
        return table, []
    return table, [f"{where}: {changed} images are labelled again with other values; the last label counts"]


def _as_array(labels: list, names: list[str], where: str) -> np.ndarray:
    """int64 [N] or float32 [N, D]. Raises DataError that names the first label that does not fit."""
    first = labels[0]
    for name, label in zip(names, labels):
        its_label = f"{where}: the label of {name}"
        if isinstance(label, list) != isinstance(first, list):
            raise DataError(f"{its_label} is {describe(label)}, that of {names[0]} {describe(first)}; "
                            "give all labels in one form")
        if isinstance(label, list) and len(label) != len(first):
            raise DataError(f"{its_label} has {len(label)} numbers, that of {names[0]} {len(first)}; "
                            "give all labels one length")
        if not all(type(value) in (int, float) for value in (label if isinstance(label, list) else [label])):
            raise DataError(f"{its_label} is {describe(label)}, expected a flat list of numbers, or a class number")
        if not isinstance(label, list) and not (0 <= label < MAX_CLASSES and label == int(label)):
            raise DataError(f"{its_label} is {label}, expected a class number (0, 1, 2, ... {MAX_CLASSES - 1}), "
                            "or a list of numbers")
    if not isinstance(first, list):
        return np.array(labels, dtype=np.int64)
    if not first:
        raise DataError(f"{where}: the labels are empty lists; give numbers, {WITHOUT}")
    with np.errstate(over="ignore"):
        array = np.array(labels, dtype=np.float64).astype(np.float32)
    bad = ~np.isfinite(array)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(f"{where}: the label of {names[row]} holds {labels[row][column]} at position {column}, as "
                        f"{bad.any(axis=1).sum()} labels do, expected finite numbers; correct or remove such images")
    return array
