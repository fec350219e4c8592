"""The labels in dataset.json: {"labels": [["00000/img00000000.png", label], ...]}, a label being a list of numbers or a class number."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from training.image_files import DataError, FolderFiles, ZipFiles

LABEL_FILE = "dataset.json"
MAX_CLASSES = 2 ** 20
EXPECTED = '{"labels": [["IMAGE NAME", [NUMBERS] or CLASS], ...]}'


def read_labels(files: ZipFiles | FolderFiles, image_names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Labels of these images, float32 [N, D] or class numbers int64 [N], and notes for the log.

    Labels of other images are counted in the notes. Raises DataError where there are no labels, or not one of one kind for each image.
    """
    where = files.locate(LABEL_FILE)
    table, notes = _read_table(files, where)
    absent = [name for name in image_names if table.get(name) is None]
    if absent:
        raise DataError(f"{where}: {len(absent)} of {len(image_names)} images have no label, the first is {absent[0]}; "
                        "add their labels, remove the images, or train without labels (--cfg=stylegan2 --cond=0)")
    extra = sorted(table.keys() - set(image_names))
    if extra:
        notes.append(f"{where}: {len(extra)} labels are of images that are not there (the first is {extra[0]}); ignored")
    return _as_array([table[name] for name in image_names], image_names, where), notes


def _read_table(files: ZipFiles | FolderFiles, where: str) -> tuple[dict[str, Any], list[str]]:
    """Label by image name, as parsed."""
    if LABEL_FILE not in files.names:
        nested = min((name for name in files.names if name.endswith("/" + LABEL_FILE)), default=None)
        hint = "write one, or train without labels (--cfg=stylegan2 --cond=0)"
        if nested:
            hint = f"there is {nested}: move it to the top, and name the images from there"
        raise DataError(f"--data={files.path}: labels are wanted (--cond=1, or a raycond preset), but there is no {LABEL_FILE}; {hint}")
    try:
        document = json.loads(files.read(LABEL_FILE))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: no text in UTF-8 ({error}); expected {EXPECTED}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: invalid JSON ({error}); expected {EXPECTED}") from error
    if not isinstance(document, dict):
        raise DataError(f"{where}: holds {_describe(document)}, expected {EXPECTED}")
    labels = document.get("labels")
    if labels is None:
        raise DataError(f'{where}: has no "labels", but labels are wanted (--cond=1, or a raycond preset); add {EXPECTED}, '
                        "or train without labels (--cfg=stylegan2 --cond=0)")
    pairs = labels.items() if isinstance(labels, dict) else labels
    if isinstance(pairs, (str, int, float)):
        raise DataError(f'{where}: "labels" holds {_describe(labels)}, expected {EXPECTED}')
    table: dict[str, Any] = {}
    changed = 0
    for position, pair in enumerate(pairs):
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)):
            raise DataError(f'{where}: entry {position} of "labels" is {_describe(pair)}, expected ["IMAGE NAME", [NUMBERS] or CLASS]')
        name = pair[0].replace("\\", "/")
        changed += name in table and table[name] != pair[1]
        table[name] = pair[1]
    return table, [f"{where}: {changed} images are labelled again with other values; the last label counts"] if changed else []


def _as_array(labels: list, names: list[str], where: str) -> np.ndarray:
    """int64 [N] or float32 [N, D]; DataError names the first label that does not fit."""
    first = labels[0]
    for name, label in zip(names, labels):
        its_label = f"{where}: the label of {name}"
        if isinstance(label, list) != isinstance(first, list):
            raise DataError(f"{its_label} is {_describe(label)}, that of {names[0]} {_describe(first)}; give all labels in one form")
        if isinstance(label, list) and len(label) != len(first):
            raise DataError(f"{its_label} has {len(label)} numbers, that of {names[0]} {len(first)}; give all labels one length")
        if not all(type(value) in (int, float) for value in (label if isinstance(label, list) else [label])):
            raise DataError(f"{its_label} is {_describe(label)}, expected a flat list of numbers, or a class number")
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


def _describe(value: Any) -> str:
    """A JSON value in a few words."""
    if isinstance(value, list):
        odd = [item for item in value if type(item) not in (int, float)]
        return f"a list of {len(value)}" + (f" with {_describe(odd[0])} in it" if odd else "")
    text = "an object" if isinstance(value, dict) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
