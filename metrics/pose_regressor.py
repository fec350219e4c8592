"""The pose regressor: image -> viewing direction, learned from a data set's own images and cameras.

    python -m metrics.pose_regressor --data=heads-32.zip --dest=pose-heads-32.pt

The file is a detector (metrics.detectors): images [N, 1 or 3, H, W] in the range of uint8, any size -> float32 [N, 3], the camera's
forward axis in the world, of length 1. How far off it is on images that it was not trained on, and how far a guess is off, are stored in it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch

from camera_utils import Camera
from dnnlib import cli
from dnnlib.util import run_program
from metrics.directions import angles_deg, best_constant_direction
from metrics.small_command import check_dest, make_recipe, recipe_options
from metrics.small_network import SmallNetwork, save_network
from metrics.small_training import Images, Recipe, build, dataset_kwargs_for, describe, fit, load_images, open_with_cameras, predict, summary

EXAMPLES = """\b
Examples:
  # Heads at 32 px: some minutes on one core
  python -m metrics.pose_regressor --data=heads-32.zip --dest=pose-heads-32.pt
\b
  # Then, with the scene embedding (python -m metrics.scene_embedding) or a face recogniser
  python calc_metrics.py --metrics=pose_error --network=network-snapshot-000100.pkl \\
      --pose-regressor=pose-heads-32.pt --embedding=scenes-heads-32.pt
"""


def viewing_directions(labels: torch.Tensor) -> torch.Tensor:
    """Camera labels [N, 25] -> forward axes [N, 3] in the world, of length 1."""
    return torch.nn.functional.normalize(Camera.from_label(labels).forward, dim=1)


def held_out_errors(network: SmallNetwork, images: Images, device: str) -> dict[str, float]:
    """Angles [deg] on held-out images: the network's mean and median, and those of the best constant direction (of the training part)."""
    directions = viewing_directions(images.labels).numpy()
    truth = directions[images.test]
    angle = angles_deg(predict(network, images, images.test, device).numpy(), truth)
    guess = angles_deg(best_constant_direction(directions[images.train]), truth)
    return dict(held_out_mean_deg=float(angle.mean()), held_out_median_deg=float(np.median(angle)), chance_deg=float(guess.mean()))


def train_pose_regressor(dataset_kwargs: dict, dest: str, recipe: Recipe = Recipe(), progress: bool = True) -> dict:
    """Trains on that data set and writes `dest`, whole or not at all. Returns the metadata. Raises UserError where the data do not do.

    Loss: half the squared chord between unit vectors, 1 - cos(angle).
    """
    start = time.monotonic()
    images = load_images(dataset_kwargs, recipe, progress)
    if progress:
        print(describe(images))
    network = build(3, images.pixels.shape[2], recipe.seed)
    directions = viewing_directions(images.labels).to(recipe.device)
    train = images.train

    def choose(draw: torch.Generator) -> torch.Tensor:
        return train[torch.randint(len(train), [recipe.batch], generator=draw)]

    def loss(vectors: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return (vectors - directions[index.to(vectors.device)]).square().sum(dim=1).mean() / 2

    def judge() -> str:
        return f"{held_out_errors(network, images, recipe.device)['held_out_mean_deg']:.2f} deg"

    fit(network, images, choose, loss, recipe, judge, progress)
    errors = held_out_errors(network, images, recipe.device)
    metadata = dict(kind="pose_regressor", **summary(images, recipe, time.monotonic() - start), **errors)
    save_network(dest, network, metadata)
    return metadata


def require_data(dataset_kwargs: dict) -> None:
    """For the cache of detectors: raises UserError where such data have no cameras."""
    open_with_cameras(dataset_kwargs).close()


def make_detector(dataset_kwargs: dict, path: str, device: str) -> None:
    """For the cache of detectors: trains on that data set, not mirrored."""
    print(f"Training a pose regressor on {dataset_kwargs['path']} ...")
    train_pose_regressor(dict(dataset_kwargs, xflip=False), path, replace(Recipe(), device=device))


@click.command(cls=cli.Command, epilog=EXAMPLES, context_settings=dict(max_content_width=130, show_default=True))
@recipe_options(Recipe(), data="Images and cameras: an EG3D zip or folder", batch="Batch size", least_batch=2)
@click.option("--mirror", help="Train on mirrored images, with mirrored cameras, too: for symmetric subjects", type=bool, default=False, metavar="BOOL")
def main(data: str, dest: str, mirror: bool, **options: Any) -> None:
    """Train a network that tells the viewing direction of an image, for the metric pose_error.

    A tenth of the data is held out (whole scenes, where dataset.json names scenes), and the error on it is stored in the file.
    """
    check_dest(dest)
    metadata = train_pose_regressor(dataset_kwargs_for(data, mirror), dest, make_recipe(**options))
    print(f"{dest}: held-out error {metadata['held_out_mean_deg']:.2f} deg (median {metadata['held_out_median_deg']:.2f}), "
          f"chance {metadata['chance_deg']:.2f} deg; {metadata['num_images']} images, held out by {metadata['held_out_by']}, {metadata['training_time']}")


if __name__ == "__main__":
    run_program(main)
