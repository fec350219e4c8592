"""Cameras from JSON files."""

from __future__ import annotations

import json
import os

import numpy as np
import torch

from camera_utils import checks
from camera_utils.camera import LABEL_DIM, Camera
from dnnlib.util import UserError

_FORMS = f"a list of {LABEL_DIM} numbers, a list of such lists, or an EG3D dataset.json"


def load_camera_file(path: str | os.PathLike) -> Camera:
    """The cameras of a JSON file, in its order, float32: 25 numbers, a list of such lists, or an EG3D dataset.json.

    Raises UserError for a file that cannot be read, is none of these, or holds numbers that are no camera.
    """
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except OSError as error:
        raise UserError(f"camera file {path}: {error.strerror or error}; give the path of a JSON file") from error
    except ValueError as error:                                  # broken JSON or broken UTF-8
        raise UserError(f"camera file {path} is not JSON ({error}); expected {_FORMS}") from error
    rows, names = _rows(data, path)
    for name, row in zip(names, rows):
        if not isinstance(row, list) or not all(_is_number(value) for value in row):
            raise UserError(f"{name}: {_shorten(row)} is not a list of numbers; expected {_FORMS}")
        if len(row) != LABEL_DIM:
            raise UserError(f"{name}: {len(row)} numbers, expected {LABEL_DIM}: cam2world (4 x 4), then intrinsics (3 x 3), row by row")
    labels = np.array(rows, dtype=np.float64)
    checks.check_label_values(labels, names)
    return Camera.from_label(torch.from_numpy(labels).float())


def _rows(data: object, path: str) -> tuple[list, list[str]]:
    """The candidates for labels, and what to call each in a message."""
    if isinstance(data, dict):
        entries = data.get("labels")
        if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
            raise UserError(f"camera file {path}: no list of [image, label] pairs under \"labels\"; expected {_FORMS}")
        rows, names = [label for _, label in entries], [f"camera file {path}, {image}" for image, _ in entries]
    elif isinstance(data, list) and data and _is_number(data[0]):
        rows, names = [data], [f"camera file {path}"]
    elif isinstance(data, list):
        rows, names = data, [f"camera file {path}, entry {i}" for i in range(len(data))]
    else:
        raise UserError(f"camera file {path} holds {_shorten(data)}; expected {_FORMS}")
    if not rows:
        raise UserError(f"camera file {path} holds no camera; expected {_FORMS}")
    return rows, names


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
