"""What a run leaves to look at and to load: sheets of images, sheets of views, network files."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import numpy as np
import torch

import camera_utils
from torch_utils import persistence
from training.image_grid import save_image_grid

VIEW_COLUMNS = 7


def grid_size(resolution: int, num_items: int) -> tuple[int, int]:
    """Columns and rows of an image sheet that fills a large screen: 7 to 16 by 4 to 16, no more than there are images."""
    columns, rows = (int(np.clip(side // resolution, low, 16)) for side, low in [(7680, 7), (4320, 4)])
    columns = min(columns, max(num_items, 1))
    return columns, min(rows, max(num_items // columns, 1))


def choose_reals(dataset: Any, columns: int, rows: int, seed: int) -> list[int]:
    """Items for the sheet of real images: at random, too few repeated; of data with classes, each row shows one."""
    order = np.random.RandomState(seed).permutation(len(dataset))
    if not dataset.has_onehot_labels:
        return [int(order[i % len(order)]) for i in range(columns * rows)]
    by_class: dict[int, list[int]] = {}
    for i in order:
        by_class.setdefault(int(np.argmax(dataset.get_label(int(i)))), []).append(int(i))
    classes = [by_class[label] for label in sorted(by_class)]
    return [classes[row % len(classes)][column % len(classes[row % len(classes)])] for row in range(rows) for column in range(columns)]


class ImageSnapshots:
    """reals.png once; fakes*.png and, where there are cameras, views*.png at every snapshot. The latents never change."""

    def __init__(self, run_dir: str, dataset: Any, z_dim: int, camera_stats: dict | None, seed: int, device: torch.device, batch: int = 16):
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
        """fakes<suffix>.png: each latent with its real image's label; views<suffix>.png: a row per latent, a column per camera."""
        fakes = self._generate(G_ema, self.z, self.c)
        save_image_grid(fakes, os.path.join(self.run_dir, f"fakes{suffix}.png"), self.size)
        if self.sweep is not None:
            rows = min(len(self.z), max(self.size[1], 4))
            views = self._generate(G_ema, self.z[:rows].repeat_interleave(VIEW_COLUMNS, dim=0), self.sweep.repeat(rows, 1))
            save_image_grid(views, os.path.join(self.run_dir, f"views{suffix}.png"), (VIEW_COLUMNS, rows))

    @torch.no_grad()
    def _generate(self, G_ema: torch.nn.Module, z: torch.Tensor, c: torch.Tensor) -> np.ndarray:
        """uint8 [N, C, H, W]."""
        images = [G_ema(zs, cs, noise_mode="const") for zs, cs in zip(z.split(self.batch), c.split(self.batch))]
        return torch.cat([to_uint8(image).cpu() for image in images]).numpy()


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in -1 .. 1 -> uint8."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def sweep_labels(camera_stats: dict, columns: int) -> torch.Tensor:
    """Labels [columns, 25] of a sweep over the data's own range of yaw, at its mean pitch."""
    low, high = camera_stats["yaw_range"]
    all_around = high - low > 1.9 * math.pi             # then both ends are one view
    yaw = torch.linspace(low, high, columns + all_around, dtype=torch.float32)[:columns]
    camera = camera_utils.Camera.from_stats(camera_stats, yaw=yaw, pitch=torch.full_like(yaw, camera_stats["pitch_mean"]))
    return camera.to_label().to(torch.float32)


def save_network(path: str, G: torch.nn.Module, D: torch.nn.Module, G_ema: torch.nn.Module, augment_pipe: torch.nn.Module | None,
                 training_set_kwargs: dict, camera_stats: dict | None) -> None:
    """Writes network-snapshot-*.pkl, whole or not at all."""
    networks = {name: _as_stored(module) for name, module in [("G", G), ("D", D), ("G_ema", G_ema), ("augment_pipe", augment_pipe)]}
    persistence.save(dict(networks, training_set_kwargs=dict(training_set_kwargs), camera_stats=camera_stats), path)


def _as_stored(module: torch.nn.Module | None) -> torch.nn.Module | None:
    return None if module is None else copy.deepcopy(module).cpu().eval().requires_grad_(False)
