"""The labels in dataset.json: {"labels": [["00000/img00000000.png", label], ...]}, a label being a list of numbers or a class number."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Any

import numpy as np

from camera_utils.files import LABELS_FORM, describe, label_pairs
from dnnlib.util import UserError, parse_json
from training.image_files import LABEL_FILE, DataError, FolderFiles, ZipFiles, plain_name

MAX_CLASSES = 2 ** 20
WITHOUT = "or train without labels (--cfg=stylegan2 --cond=0)"


def read_labels(files: ZipFiles | FolderFiles, image_names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels of these images, float32 [N, D] or class numbers int64 [N], and notes for the log.

    Labels of other images are counted in the notes. Raises DataError where there are no labels, or not one of one kind for each image.
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
        notes.append(f"{where}: {len(extra)} labels are of images that are not there (the first is {extra[0]}); ignored")
    return _as_array([table[name] for name in image_names], image_names, where), notes


def meet_names(table: dict[str, Any], image_names: list[str]) -> dict[str, Any]:
    """The table by the images' own names. Where none meet, one side may count a folder around all that the other does not."""
    if not table or not image_names or any(name in table for name in image_names):
        return table
    theirs, ours = _folder_around(table), _folder_around(image_names)
    moved = {ours + name.removeprefix(theirs): entry for name, entry in table.items()}
    return moved if any(name in moved for name in image_names) else table


def _folder_around(names: Iterable[str]) -> str:
    """'a/b/' where all names begin so; '' where they share no folder."""
    common = posixpath.commonpath([posixpath.dirname(name) for name in names])
    return common + "/" if common else ""


def _read_table(files: ZipFiles | FolderFiles, where: str) -> tuple[dict[str, Any], list[str]]:
    """Label by image name, as parsed."""
    if LABEL_FILE not in files.names:
        nested = min((name for name in files.names if name.endswith("/" + LABEL_FILE)), default=None)
        hint = "write one, or train without labels (--cfg=stylegan2 --cond=0)"
        if nested:
            hint = f"there is {nested}: move it to the top, and name the images from there"
        raise DataError(f"--data={files.path}: labels are wanted (--cond=1, or a raycond preset), but there is no {LABEL_FILE}; {hint}")
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
    return table, [f"{where}: {changed} images are labelled again with other values; the last label counts"] if changed else []


def _as_array(labels: list, names: list[str], where: str) -> np.ndarray:
    """int64 [N] or float32 [N, D]; DataError names the first label that does not fit."""
    first = labels[0]
    for name, label in zip(names, labels):
        its_label = f"{where}: the label of {name}"
        if isinstance(label, list) != isinstance(first, list):
            raise DataError(f"{its_label} is {describe(label)}, that of {names[0]} {describe(first)}; give all labels in one form")
        if isinstance(label, list) and len(label) != len(first):
            raise DataError(f"{its_label} has {len(label)} numbers, that of {names[0]} {len(first)}; give all labels one length")
        if not all(type(value) in (int, float) for value in (label if isinstance(label, list) else [label])):
            raise DataError(f"{its_label} is {describe(label)}, expected a flat list of numbers, or a class number")
        if not isinstance(label, list) and not (0 <= label < MAX_CLASSES and label == int(label)):
            raise DataError(f"{its_label} is {label}, expected a class number (0, 1, 2, ... {MAX_CLASSES - 1}), or a list of numbers")
    if not isinstance(first, list):
        return np.array(labels, dtype=np.int64)
    if not first:
        raise DataError(f"{where}: the labels are empty lists; give numbers, or train without labels (--cfg=stylegan2 --cond=0)")
    with np.errstate(over="ignore"):
        array = np.array(labels, dtype=np.float64).astype(np.float32)
    bad = ~np.isfinite(array)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(f"{where}: the label of {names[row]} holds {labels[row][column]} at position {column}, as {bad.any(axis=1).sum()} labels do, "
                        "expected finite numbers; correct or remove such images")
    return array
