"""How the pose regressor and the scene embedding are trained: data in memory, augmentation, one loop, their options."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dnnlib import UserError, cli
from dnnlib.util import format_time_brief
from metrics.detectors.convnet import ConvNet, resize_by_area
from metrics.detectors.dataset import CHUNK, read_chunks, read_scene_ids
from torch_utils.distributed import choose_device
from training.dataset import open_stored

RESOLUTIONS = (8, 16, 32, 64, 128, 256)
USUAL_RESOLUTION = 64                    # of networks for larger images
HELD_OUT = 0.1                           # share of the scenes that training does not see
MAX_HELD_OUT = 4000                      # images; with so many the error is known well enough
NUM_REPORTS = 8                          # lines on the screen during training


@dataclass(frozen=True)
class Recipe:
    """What a user chooses."""

    resolution: int | None  = None       # The network resizes images to this. None: own size, up to USUAL_RESOLUTION.
    kimg:       float       = 100        # Train on so many thousands of images, repetitions counted.
    batch:      int         = 64
    seed:       int         = 0          # Of weights, held-out part, order and augmentation.
    device:     str         = "cpu"
    lr:         float       = 2e-3       # Adam's largest learning rate, see `_rate`.


# ---------------------------------------------------------------------------------------------------------------------
# Data.

@dataclass(frozen=True)
class Images:
    """A data set in memory."""

    name:       str
    pixels:     Tensor                   # uint8 [N, 3, S, S]
    labels:     Tensor                   # cameras, float32 [N, 25]
    scenes:     Tensor                   # number of each image's scene, int64 [N]
    held_out:   Tensor                   # bool [N]; training does not see these images
    by_scene:   bool                     # True: the data name their scenes. False: each image counts as a scene.

    @property
    def train(self) -> Tensor:
        """Numbers of the images to train on, int64 [M]."""
        return torch.nonzero(~self.held_out)[:, 0]

    @property
    def test(self) -> Tensor:
        """Numbers of the held-out images, int64 [M]."""
        return torch.nonzero(self.held_out)[:, 0]


def dataset_kwargs_for(path: str, mirror: bool = False) -> dict:
    """Arguments of the data set at `path`, with labels."""
    return dict(class_name="training.dataset.ImageFolderDataset", path=path, use_labels=True, xflip=mirror)


def open_with_cameras(dataset_kwargs: dict) -> Any:
    """Opens the data set. Raises UserError if its labels are not cameras."""
    dataset = open_stored(dict(dataset_kwargs, use_labels=True))
    if not dataset.has_camera_labels:
        raise UserError(f"--data={dataset_kwargs['path']}: the labels are no cameras (they have {dataset.label_dim} "
                        "numbers, expected 25); training needs the camera of each image: give data with cameras")
    return dataset


def load_images(dataset_kwargs: dict, recipe: Recipe, progress: bool = True) -> Images:
    """Reads the data set and holds out some scenes. Raises UserError if it has no cameras or too few images.

    A mirrored image belongs to the scene of its original.
    """
    dataset = open_with_cameras(dataset_kwargs)
    path = dataset_kwargs["path"]
    size = recipe.resolution or largest_resolution(min(dataset.resolution, USUAL_RESOLUTION))
    raw = np.array([dataset.get_details(i).raw_idx for i in range(len(dataset))])
    scene_ids = read_scene_ids(path)
    scenes = raw if scene_ids is None else scene_ids[raw]
    held_out = choose_held_out(scenes, recipe.seed)
    if held_out.sum() < 2 or (~held_out).sum() < recipe.batch:
        raise UserError(f"--data={path}: {len(dataset)} images of {len(np.unique(scenes))} scenes; too few to train on "
                        f"batches of {recipe.batch} and hold some out; give more, or a smaller --batch")
    labels = np.stack([dataset.get_label(i) for i in range(len(dataset))])
    pixels = _read(dataset, size, progress)
    dataset.close()
    return Images(dataset.name, pixels, torch.from_numpy(labels), torch.from_numpy(scenes), torch.from_numpy(held_out),
                  by_scene=scene_ids is not None)


def largest_resolution(size: int) -> int:
    """The largest of RESOLUTIONS that does not exceed `size`, at least the smallest of them."""
    return max([resolution for resolution in RESOLUTIONS if resolution <= size], default=RESOLUTIONS[0])


def choose_held_out(scenes: np.ndarray, seed: int) -> np.ndarray:
    """scenes: [N], the scene of each image. Returns bool [N]: the images of scenes chosen at random."""
    names, number, size = np.unique(scenes, return_inverse=True, return_counts=True)
    order = np.random.RandomState(seed % 2 ** 32).permutation(len(names))
    limit = min(HELD_OUT * len(scenes), MAX_HELD_OUT)
    chosen = np.zeros([len(names)], dtype=bool)
    chosen[order[np.cumsum(size[order]) <= max(limit, size[order[0]])]] = True
    return chosen[number.reshape(-1)]


def _read(dataset: Any, size: int, shown: bool) -> Tensor:
    """uint8 [N, 3, size, size]."""
    pixels = torch.empty([len(dataset), 3, size, size], dtype=torch.uint8)
    chunks = np.array_split(np.arange(len(dataset)), -(-len(dataset) // CHUNK))
    with cli.progress(len(dataset), "reading", shown=shown) as bar:
        for items, images in zip(chunks, read_chunks(dataset, chunks)):
            pixels[items] = resize_by_area(images.float(), size).round().to(torch.uint8)
            bar.update(len(items))
    return pixels


# ---------------------------------------------------------------------------------------------------------------------
# Training.

def augment(x: Tensor, draw: torch.Generator) -> Tensor:
    """Changes brightness, contrast, tint, sharpness and noise of each image by a random amount. No pixel moves.

    x: [N, 3, S, S], -1 to 1. Generated images are softer and noisier than real ones; that must not look like a pose.
    """
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=draw, dtype=torch.float32) * 2 - 1).to(x.device)

    x = (x * (1 + 0.15 * uniform(n, 1, 1, 1) + 0.05 * uniform(n, 3, 1, 1))
         + 0.1 * uniform(n, 1, 1, 1) + 0.05 * uniform(n, 3, 1, 1))
    tap = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (tap[:, None] * tap)[None, None].repeat(3, 1, 1, 1)            # binomial [3, 1, 3, 3]
    soft = nn.functional.conv2d(nn.functional.pad(x, [1, 1, 1, 1], mode="replicate"), kernel, groups=3)
    x = torch.lerp(x, soft, uniform(n, 1, 1, 1).clamp(min=0))               # half of the images stay sharp
    noise = torch.randn(x.shape, generator=draw, dtype=torch.float32).to(x.device)
    return x + 0.08 * uniform(n, 1, 1, 1).clamp(min=0) * noise


def build(num_outputs: int, resolution: int, seed: int) -> ConvNet:
    """A new network whose weights derive from the seed. Torch's global generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvNet(resolution, num_outputs)


def fit(
    network:    ConvNet,
    images:     Images,
    choose:     Callable[[torch.Generator], Tensor],    # -> numbers of the images of a batch, int64 [B].
    loss:       Callable[[Tensor, Tensor], Tensor],     # (unit vectors [B, D], numbers [B]) -> scalar.
    recipe:     Recipe,
    judge:      Callable[[], str],                      # -> what to print about the held-out images.
    shown:      bool = True,                            # Print progress?
) -> None:
    """Trains the network in place, a function of the recipe's seed. Leaves it in eval mode on the recipe's device."""
    network.to(recipe.device, memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(recipe.seed)
    steps = max(math.ceil(recipe.kimg * 1000 / recipe.batch), 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    reports = {math.ceil(steps * (i + 1) / NUM_REPORTS) for i in range(NUM_REPORTS)}
    with cli.progress(steps * recipe.batch, "training", shown=shown) as bar:
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
    """Share of the largest learning rate at t in [0, 1]: rises over the first tenth, falls to zero as a cosine."""
    return min(t / 0.1, 1.0) * (0.5 + 0.5 * math.cos(math.pi * t)) + 1e-3


@torch.no_grad()
def predict(network: ConvNet, images: Images, index: Tensor, device: str, batch: int = 256) -> Tensor:
    """Unit vectors [M, D] of the images with numbers index [M], on the CPU."""
    network.eval()
    parts = [network(images.pixels[part].to(device)).cpu() for part in index.split(batch)]
    return torch.cat(parts)


def describe(images: Images) -> str:
    """A line about the data."""
    count = len(torch.unique(images.scenes))
    scenes = f"{count} scenes" if images.by_scene else "scenes unknown, so images count as scenes"
    size = images.pixels.shape[2]
    return f"{images.name}: {len(images.pixels)} images ({scenes}) at {size} px, {len(images.test)} of them held out"


def summary(images: Images, recipe: Recipe, seconds: float) -> dict:
    """The metadata that both networks have."""
    return dict(data=images.name, resolution=images.pixels.shape[2], num_images=len(images.train),
                num_held_out=len(images.test), held_out_by="scene" if images.by_scene else "image", kimg=recipe.kimg,
                batch=recipe.batch, seed=recipe.seed, torch=torch.__version__, training_time=format_time_brief(seconds))


# ---------------------------------------------------------------------------------------------------------------------
# Options of the commands metrics.pose_regressor and metrics.scene_embedding.

def recipe_options(usual: Recipe, data: str, batch: str, least_batch: int) -> Callable:
    """Decorator: adds --data, --dest and the options of `make_recipe`. data, batch: help texts of these options."""
    options = [
        click.option("--data",       help=data, metavar="ZIP|DIR", required=True, type=cli.PATH),
        click.option("--dest",       help="TorchScript file to write; replaces an existing one", metavar="FILE", required=True, type=cli.PATH),
        click.option("--resolution", help="The network resizes images to this  [default: size of the images, at most 64]",
                     type=click.Choice([str(size) for size in RESOLUTIONS]), metavar="PIXELS"),
        click.option("--kimg",       help="Thousands of images to train on, repetitions counted", type=click.FloatRange(min=0, min_open=True),
                     default=usual.kimg),
        click.option("--batch",      help=batch, type=click.IntRange(min=least_batch), default=usual.batch),
        click.option("--seed",       help="Random seed", type=click.IntRange(0, 2 ** 32 - 1), default=0),
        cli.device_option,
    ]

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def make_recipe(resolution: str | None, kimg: float, batch: int, seed: int, device: str) -> Recipe:
    """The recipe that these options describe."""
    return Recipe(resolution=int(resolution) if resolution else None, kimg=kimg, batch=batch, seed=seed,
                  device=choose_device(device))


def check_dest(dest: str) -> None:
    """Raises UserError if --dest cannot be written."""
    folder = os.path.dirname(os.path.abspath(dest))
    if not dest or os.path.isdir(dest):
        raise UserError(f"--dest={dest}: expected the name of a file, such as pose-heads.pt")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f"--dest={dest}: cannot write into {folder}; create the folder, or choose another")
