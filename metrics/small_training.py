"""How the small networks are trained: images in memory, a held-out part, augmentation that leaves the pose alone, one loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dnnlib.util import UserError, format_time_brief
from metrics.progress import progress
from metrics.reading import BATCH, read_chunks
from metrics.scene_ids import read_scene_ids
from metrics.small_network import SmallNetwork, resize_by_area
from training.dataset import open_stored

RESOLUTIONS = (8, 16, 32, 64, 128, 256)
USUAL_RESOLUTION = 64                    # where the images have more
HELD_OUT = 0.1                           # part of the scenes that training does not see
MAX_HELD_OUT = 4000                      # images: enough for the error to be certain
NUM_REPORTS = 8                          # lines while training


@dataclass(frozen=True)
class Recipe:
    """What a user chooses."""

    resolution: int | None  = None       # Size that the network brings images to. None: the images', at most USUAL_RESOLUTION.
    kimg:       float       = 100        # Thousands of images to train on, repetitions counted.
    batch:      int         = 64
    seed:       int         = 0          # Of weights, held-out part, order and augmentation.
    device:     str         = "cpu"
    lr:         float       = 2e-3       # Of Adam at its highest; rises over the first tenth, then falls to zero as a cosine.


@dataclass(frozen=True)
class Images:
    """A data set in memory."""

    name:       str
    pixels:     torch.Tensor             # uint8 [N, 3, S, S]
    labels:     torch.Tensor             # float32 [N, 25], cameras
    scenes:     torch.Tensor             # int64 [N]: items of one scene share a number
    held_out:   torch.Tensor             # bool [N]: never trained on
    by_scene:   bool                     # Do the data say which images show the same scene? Else each image counts as one.

    @property
    def train(self) -> torch.Tensor:
        """Numbers of the items to train on, int64 [M]."""
        return torch.nonzero(~self.held_out)[:, 0]

    @property
    def test(self) -> torch.Tensor:
        """Numbers of the items held out, int64 [M]."""
        return torch.nonzero(self.held_out)[:, 0]


def dataset_kwargs_for(path: str, mirror: bool = False) -> dict:
    """The data set at `path`, with labels."""
    return dict(class_name="training.dataset.ImageFolderDataset", path=path, use_labels=True, xflip=mirror)


def open_with_cameras(dataset_kwargs: dict) -> Any:
    """The data set. Raises UserError where its labels are no cameras."""
    dataset = open_stored(dict(dataset_kwargs, use_labels=True))
    if not dataset.has_camera_labels:
        raise UserError(f"--data={dataset_kwargs['path']}: the labels are no cameras (they have {dataset.label_dim} numbers, expected 25); "
                        "what is learned here is the camera, or to look past it: give data with cameras")
    return dataset


def load_images(dataset_kwargs: dict, recipe: Recipe, progress: bool = True) -> Images:
    """Reads the data set, and holds part of its scenes out. Raises UserError where it has no cameras or too few images.

    A mirrored copy belongs to the scene of its image.
    """
    dataset = open_with_cameras(dataset_kwargs)
    path = dataset_kwargs["path"]
    size = recipe.resolution or largest_resolution(min(dataset.resolution, USUAL_RESOLUTION))
    raw = np.array([dataset.get_details(i).raw_idx for i in range(len(dataset))])
    scene_ids = read_scene_ids(path)
    scenes = raw if scene_ids is None else scene_ids[raw]
    held_out = choose_held_out(scenes, recipe.seed)
    if held_out.sum() < 2 or (~held_out).sum() < recipe.batch:
        raise UserError(f"--data={path}: {len(dataset)} images of {len(np.unique(scenes))} scenes; too few to train on batches of {recipe.batch} "
                        "and hold some out; give more, or a smaller --batch")
    labels = np.stack([dataset.get_label(i) for i in range(len(dataset))])
    pixels = _read(dataset, size, progress)
    dataset.close()
    return Images(dataset.name, pixels, torch.from_numpy(labels), torch.from_numpy(scenes), torch.from_numpy(held_out), scene_ids is not None)


def largest_resolution(size: int) -> int:
    """The largest of RESOLUTIONS up to `size`, else the smallest."""
    return max([resolution for resolution in RESOLUTIONS if resolution <= size], default=RESOLUTIONS[0])


def choose_held_out(scenes: np.ndarray, seed: int) -> np.ndarray:
    """scenes: [N], the scene of each item. Returns bool [N]: items of randomly chosen scenes, all items of a scene alike."""
    names, number, size = np.unique(scenes, return_inverse=True, return_counts=True)
    order = np.random.RandomState(seed % 2 ** 32).permutation(len(names))
    limit = min(HELD_OUT * len(scenes), MAX_HELD_OUT)
    chosen = np.zeros([len(names)], dtype=bool)
    chosen[order[np.cumsum(size[order]) <= max(limit, size[order[0]])]] = True
    return chosen[number.reshape(-1)]


def _read(dataset: Any, size: int, shown: bool) -> torch.Tensor:
    """uint8 [N, 3, size, size]."""
    pixels = torch.empty([len(dataset), 3, size, size], dtype=torch.uint8)
    chunks = np.array_split(np.arange(len(dataset)), -(-len(dataset) // BATCH))
    with progress(len(dataset), "reading", shown=shown) as bar:
        for items, images in zip(chunks, read_chunks(dataset, chunks)):
            pixels[items] = resize_by_area(images.float(), size).round().to(torch.uint8)
            bar.update(len(items))
    return pixels


# ---------------------------------------------------------------------------------------------------------------------

def augment(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """x: [N, 3, S, S] in -1 .. 1. Brightness, contrast, tint, blur and noise, by another amount for each image.

    Generated images are softer and noisier than real ones; the network should not read a pose from that. Nothing moves a pixel.
    """
    n = len(x)

    def uniform(*shape: int) -> torch.Tensor:
        return (torch.rand(*shape, generator=draw, dtype=torch.float32) * 2 - 1).to(x.device)

    x = x * (1 + 0.15 * uniform(n, 1, 1, 1) + 0.05 * uniform(n, 3, 1, 1)) + 0.1 * uniform(n, 1, 1, 1) + 0.05 * uniform(n, 3, 1, 1)
    tap = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (tap[:, None] * tap)[None, None].repeat(3, 1, 1, 1)            # binomial [3, 1, 3, 3]
    soft = nn.functional.conv2d(nn.functional.pad(x, [1, 1, 1, 1], mode="replicate"), kernel, groups=3)
    x = torch.lerp(x, soft, uniform(n, 1, 1, 1).clamp(min=0))               # half of the images stay sharp
    noise = torch.randn(x.shape, generator=draw, dtype=torch.float32).to(x.device)
    return x + 0.08 * uniform(n, 1, 1, 1).clamp(min=0) * noise


def build(num_outputs: int, resolution: int, seed: int) -> SmallNetwork:
    """A fresh network; its weights derive from the seed. Torch's global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNetwork(resolution, num_outputs)


def fit(
    network:    SmallNetwork,
    images:     Images,
    choose:     Callable[[torch.Generator], torch.Tensor],                  # -> numbers of the items of a batch, int64 [B].
    loss:       Callable[[torch.Tensor, torch.Tensor], torch.Tensor],       # (unit vectors [B, D], numbers [B]) -> scalar.
    recipe:     Recipe,
    judge:      Callable[[], str],                                          # What to print about the held-out part.
    shown:      bool = True,                                            # Print how far it is?
) -> None:
    """Trains in place, deterministically, and leaves the network in eval mode on the recipe's device."""
    network.to(recipe.device, memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(recipe.seed)
    steps = max(math.ceil(recipe.kimg * 1000 / recipe.batch), 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    reports = {math.ceil(steps * (i + 1) / NUM_REPORTS) for i in range(NUM_REPORTS)}
    with progress(steps * recipe.batch, "training", shown=shown) as bar:
        for step in range(1, steps + 1):
            network.train()
            index = choose(draw)
            x = images.pixels[index].to(recipe.device).float() / 127.5 - 1
            x = augment(x, draw).contiguous(memory_format=torch.channels_last)
            value = loss(network.vectors(x), index)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            bar.update(recipe.batch)
            if step in reports and shown:
                tqdm.write(f"kimg {step * recipe.batch / 1000:<8.1f} loss {value.item():<10.4f} held out: {judge()}")
    network.eval()


def _rate(t: float) -> float:
    """Share of the full learning rate at t in [0, 1]."""
    return min(t / 0.1, 1.0) * (0.5 + 0.5 * math.cos(math.pi * t)) + 1e-3


@torch.no_grad()
def predict(network: SmallNetwork, images: Images, index: torch.Tensor, device: str, batch: int = 256) -> torch.Tensor:
    """Unit vectors [M, D] of these items, on the CPU."""
    network.eval()
    parts = [network(images.pixels[part].to(device)).cpu() for part in index.split(batch)]
    return torch.cat(parts)


# ---------------------------------------------------------------------------------------------------------------------

def describe(images: Images) -> str:
    """A line about what is trained on."""
    kinds = f"{len(torch.unique(images.scenes))} scenes" if images.by_scene else "scenes unknown, so images count as scenes"
    return f"{images.name}: {len(images.pixels)} images ({kinds}) at {images.pixels.shape[2]} px, {len(images.test)} of them held out"


def summary(images: Images, recipe: Recipe, seconds: float) -> dict:
    """What the metadata of both networks begin with."""
    return dict(data=images.name, resolution=images.pixels.shape[2], num_images=len(images.train), num_held_out=len(images.test),
                held_out_by="scene" if images.by_scene else "image", kimg=recipe.kimg, batch=recipe.batch, seed=recipe.seed,
                torch=torch.__version__, training_time=format_time_brief(seconds))
