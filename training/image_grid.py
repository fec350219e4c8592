"""Sheets of images, written so that a reader never meets half a file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dnnlib.util import open_whole
from training.image_decoding import SHEET


def save_image(image: np.ndarray, path: str, **options: Any) -> None:
    """uint8 [C, H, W] with one or three channels -> an image file, written aside and renamed. options: Pillow's."""
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] in (1, 3), f"{image.dtype} {image.shape}, expected uint8 [1 or 3, H, W]"
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    kind = Image.registered_extensions()[os.path.splitext(path)[1].lower()]
    with open_whole(path) as stream:
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, kind, **options)


def make_image_grid(images: np.ndarray, grid_size: tuple[int, int]) -> np.ndarray:
    """uint8 [N, C, H, W] -> one image [C, rows * H, columns * W], row by row; grid_size = (columns, rows), columns * rows = N."""
    columns, rows = grid_size
    N, C, H, W = images.shape
    assert N == columns * rows, f"{N} images for {columns} columns and {rows} rows"
    return images.reshape(rows, columns, C, H, W).transpose(2, 0, 3, 1, 4).reshape(C, rows * H, columns * W)


def save_image_grid(images: np.ndarray, path: str, grid_size: tuple[int, int]) -> None:
    """Writes uint8 [N, C, H, W] as one PNG, with the mark of a sheet; grid_size = (columns, rows)."""
    mark = PngInfo()
    mark.add_text(*SHEET)
    save_image(make_image_grid(images, grid_size), path, pnginfo=mark)
