"""What a run writes to be looked at and loaded: sheets of images, sheets of views, network files."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import camera_utils
from dnnlib.util import open_whole
from torch_utils import persistence
from training.data.images import SHEET

VIEW_COLUMNS = 7


def grid_size(resolution: int, num_items: int) -> tuple[int, int]:
    """Columns and rows of a sheet that fills a large screen: 7 to 16 by 4 to 16, no more than there are images."""
    columns, rows = (int(np.clip(side // resolution, low, 16)) for side, low in [(7680, 7), (4320, 4)])
    columns = min(columns, max(num_items, 1))
    return columns, min(rows, max(num_items // columns, 1))


def choose_reals(dataset: Any, columns: int, rows: int, seed: int) -> list[int]:
    """Chooses items for the sheet of real images at random, repeated if there are too few. Of data with classes, each
    row shows one class.
    """
    order = np.random.RandomState(seed).permutation(len(dataset))
    if not dataset.has_onehot_labels:
        return [int(order[i % len(order)]) for i in range(columns * rows)]
    by_class: dict[int, list[int]] = {}
    for i in order:
        by_class.setdefault(int(np.argmax(dataset.get_label(int(i)))), []).append(int(i))
    classes = [by_class[label] for label in sorted(by_class)]
    in_rows = [classes[row % len(classes)] for row in range(rows)]
    return [items[column % len(items)] for items in in_rows for column in range(columns)]


class ImageSnapshots:
    """Writes reals.png once, and at every snapshot fakes*.png and, if labels are cameras, views*.png. The latents never
    change.
    """

    def __init__(self, run_dir: str, dataset: Any, z_dim: int, camera_stats: dict | None, seed: int,
                 device: torch.device, batch: int = 16):
        self.run_dir = run_dir
        self.device = device
        self.batch = batch
        self.size = grid_size(dataset.resolution, len(dataset))
        items = [dataset[i] for i in choose_reals(dataset, *self.size, seed)]
        self.reals = np.stack([image for image, _ in items])
        rng = np.random.RandomState(seed)
        self.z = torch.from_numpy(rng.randn(len(items), z_dim).astype(np.float32)).to(device)
        self.c = torch.from_numpy(np.stack([label for _, label in items]).astype(np.float32)).to(device)
        self.sweep = None if camera_stats is None else sweep_labels(camera_stats, VIEW_COLUMNS).to(device)

    def save_reals(self) -> None:
        save_image_grid(self.reals, os.path.join(self.run_dir, "reals.png"), self.size)

    def save_fakes(self, G_ema: torch.nn.Module, suffix: str) -> None:
        """Writes fakes<suffix>.png, each latent with its real image's label, and views<suffix>.png, a row per latent
        and a column per camera.
        """
        fakes = self._generate(G_ema, self.z, self.c)
        save_image_grid(fakes, os.path.join(self.run_dir, f"fakes{suffix}.png"), self.size)
        if self.sweep is not None:
            rows = min(len(self.z), max(self.size[1], 4))
            z = self.z[:rows].repeat_interleave(VIEW_COLUMNS, dim=0)
            views = self._generate(G_ema, z, self.sweep.repeat(rows, 1))
            save_image_grid(views, os.path.join(self.run_dir, f"views{suffix}.png"), (VIEW_COLUMNS, rows))

    @torch.no_grad()
    def _generate(self, G_ema: torch.nn.Module, z: Tensor, c: Tensor) -> np.ndarray:
        """uint8 [N, C, H, W]."""
        images = [G_ema(zs, cs, noise_mode="const") for zs, cs in zip(z.split(self.batch), c.split(self.batch))]
        return torch.cat([to_uint8(image).cpu() for image in images]).numpy()


def to_uint8(images: Tensor) -> Tensor:
    """Images in -1 .. 1 -> uint8."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def sweep_labels(camera_stats: dict, columns: int) -> Tensor:
    """Labels [columns, 25] of a sweep over the data's range of yaw at its mean pitch."""
    low, high = camera_stats["yaw_range"]
    all_around = high - low > 1.9 * math.pi             # then both ends are the same view
    yaw = torch.linspace(low, high, columns + all_around, dtype=torch.float32)[:columns]
    pitch = torch.full_like(yaw, camera_stats["pitch_mean"])
    camera = camera_utils.Camera.from_stats(camera_stats, yaw=yaw, pitch=pitch)
    return camera.to_label().to(torch.float32)


def save_network(path: str, G: torch.nn.Module, D: torch.nn.Module, G_ema: torch.nn.Module,
                 augment_pipe: torch.nn.Module | None, training_set_kwargs: dict, camera_stats: dict | None) -> None:
    """Writes network-snapshot-*.pkl, whole or not at all."""
    networks = dict(G=G, D=D, G_ema=G_ema, augment_pipe=augment_pipe)
    networks = {name: _as_stored(module) for name, module in networks.items()}
    persistence.save(dict(networks, training_set_kwargs=dict(training_set_kwargs), camera_stats=camera_stats), path)


def _as_stored(module: torch.nn.Module | None) -> torch.nn.Module | None:
    return None if module is None else copy.deepcopy(module).cpu().eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# Sheets of images. A file appears whole or not at all.

def save_image(image: np.ndarray, path: str, **options: Any) -> None:
    """Writes uint8 [C, H, W] with one or three channels as an image file. options: Pillow's."""
    fits = image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] in (1, 3)
    assert fits, f"{image.dtype} {image.shape}, expected uint8 [1 or 3, H, W]"
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    kind = Image.registered_extensions()[os.path.splitext(path)[1].lower()]
    with open_whole(path) as stream:
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, kind, **options)


def make_image_grid(images: np.ndarray, grid_size: tuple[int, int]) -> np.ndarray:
    """uint8 [N, C, H, W] -> one image [C, rows * H, columns * W], filled row by row. grid_size: (columns, rows)."""
    columns, rows = grid_size
    N, C, H, W = images.shape
    assert N == columns * rows, f"{N} images for {columns} columns and {rows} rows"
    return images.reshape(rows, columns, C, H, W).transpose(2, 0, 3, 1, 4).reshape(C, rows * H, columns * W)


def save_image_grid(images: np.ndarray, path: str, grid_size: tuple[int, int]) -> None:
    """Writes uint8 [N, C, H, W] as one PNG that is marked as a sheet. grid_size: (columns, rows)."""
    mark = PngInfo()
    mark.add_text(*SHEET)
    save_image(make_image_grid(images, grid_size), path, pnginfo=mark)
