"""Labels and cameras from JSON files."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch

from camera_utils import checks
from camera_utils.camera import LABEL_DIM, Camera
from dnnlib.util import UserError, parse_json

LABELS_FORM = '{"labels": [["IMAGE NAME", [NUMBERS] or CLASS], ...]}'
_FORMS = f"a list of {LABEL_DIM} numbers, a list of such lists, or such labels by image name as in an EG3D dataset.json"


def label_pairs(document: Any, where: str, expected: str = LABELS_FORM) -> list[tuple[str, Any]]:
    """(image name, label) of each entry of a parsed dataset.json, in its order; the labels are not looked at.

    "labels" holds [["NAME", LABEL], ...] or {"NAME": LABEL, ...}; either may also be the whole document. UserError for
    anything else. where: how messages call the file; expected: what they say it should hold.
    """
    labels = document
    if isinstance(document, dict) and not _is_table(document):
        labels = document.get("labels")
        if labels is None:
            raise UserError(f'{where}: has no "labels"; expected names and labels under "labels": {expected}')
    elif not isinstance(document, dict) and not (isinstance(document, list) and any(map(_is_pair, document))):
        raise UserError(f"{where}: holds {describe(document)}, expected {expected}")
    if not isinstance(labels, (dict, list)):
        raise UserError(f'{where}: "labels" holds {describe(labels)}, expected {expected}')
    pairs = list(labels.items()) if isinstance(labels, dict) else labels
    for position, pair in enumerate(pairs):
        if not _is_pair(pair):
            raise UserError(f'{where}: entry {position} of "labels" is {describe(pair)}, '
                            'expected ["IMAGE NAME", [NUMBERS] or CLASS]')
    return [tuple(pair) for pair in pairs]


def load_camera_file(path: str | os.PathLike) -> Camera:
    """The cameras of a JSON file, in its order, float32.

    It holds 25 numbers, a list of such lists, or names with labels as `label_pairs` takes them. Raises UserError for a
    file that cannot be read, has another form, or holds numbers that are not a camera.
    """
    path = os.fspath(path)
    where = f"camera file {path}"
    try:
        with open(path, "rb") as stream:
            data = parse_json(stream.read())
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}; give the path of a JSON file") from error
    except ValueError as error:                                  # broken JSON or broken UTF-8
        raise UserError(f"{where} is not JSON ({error}); expected {_FORMS}") from error
    rows, names = _rows(data, where)
    for name, row in zip(names, rows):
        if not isinstance(row, list) or not all(_is_number(value) for value in row):
            raise UserError(f"{name}: {describe(row)} is not a list of numbers; expected {_FORMS}")
        if len(row) != LABEL_DIM:
            raise UserError(f"{name}: {len(row)} numbers, expected {LABEL_DIM}: {checks.LABEL_FORM}")
    labels = np.array(rows, dtype=np.float64)
    checks.check_label_values(labels, names)
    return Camera.from_label(torch.from_numpy(labels).float())


def _rows(data: Any, where: str) -> tuple[list, list[str]]:
    """The entries of the file, and what to call each in a message."""
    if isinstance(data, list) and data and _is_number(data[0]):
        return [data], [where]
    if isinstance(data, list) and data and not _is_pair(data[0]):
        return data, [f"{where}, entry {i}" for i in range(len(data))]
    pairs = label_pairs(data, where, _FORMS) if data != [] else []
    if not pairs:
        raise UserError(f"{where} holds no camera; expected {_FORMS}")
    return [label for _, label in pairs], [f"{where}, {name}" for name, _ in pairs]


def _is_table(document: dict) -> bool:
    """Are these labels by name without "labels" around them? Only lists of numbers count: a number may be anything."""
    return bool(document) and "labels" not in document and all(
        isinstance(label, list) and label and all(map(_is_number, label)) for label in document.values())


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[0], str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """A JSON value in a few words."""
    if isinstance(value, list):
        odd = [item for item in value if not _is_number(item)]
        return f"a list of {len(value)}" + (f" with {describe(odd[0])} in it" if odd else "")
    text = "an object" if isinstance(value, dict) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
