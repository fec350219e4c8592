"""The pose regressor: image -> viewing direction, learned from the images and cameras of a data set.

The detector returns float32 [N, 3]: unit vectors along the camera's forward axis, in world coordinates. Its file holds
the error on held-out images, and the error of the best constant direction there.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from camera_utils import Camera
from metrics.detectors import training
from metrics.detectors.convnet import ConvNet, save_network
from metrics.detectors.training import Images, Recipe, load_images, open_with_cameras, predict

MAX_CANDIDATES = 500                     # starting points of the search for the best constant direction


def viewing_directions(labels: Tensor) -> Tensor:
    """Camera labels [N, 25] -> forward axes in the world, unit vectors [N, 3]."""
    return torch.nn.functional.normalize(Camera.from_label(labels).forward, dim=1)


def angles_deg(directions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Angles [deg] between unit vectors, [..., 3] each; they broadcast. Unlike an arc cosine exact for small angles."""
    directions, others = (np.asarray(array, dtype=np.float64) for array in (directions, others))
    half_chord = np.linalg.norm(directions - others, axis=-1) / 2
    return np.degrees(2 * np.arcsin(np.clip(half_chord, 0, 1)))


def best_constant_direction(directions: np.ndarray) -> np.ndarray:
    """The unit vector [3] with the smallest mean angle to unit vectors [N, 3], their median on the sphere.

    Starts from the best of their mean and some of themselves (the mean of cameras all around is near zero), then
    iterates as Weiszfeld does, on the tangent plane. Accurate to a small part of a degree.
    """
    directions = np.asarray(directions, dtype=np.float64)
    mean = directions.mean(axis=0)
    some = directions[np.linspace(0, len(directions) - 1, min(len(directions), MAX_CANDIDATES)).astype(int)]
    candidates = [*some, mean / np.linalg.norm(mean)] if np.linalg.norm(mean) > 1e-6 else list(some)
    best = min(candidates, key=lambda candidate: angles_deg(directions, candidate).mean())
    point = best
    for _ in range(50):
        angle = np.radians(angles_deg(directions, point))
        tangent = directions - (directions @ point)[:, None] * point
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)    # unit vectors to each direction
        weight = 1 / np.maximum(angle, 1e-3)
        point = point + (tangent * (weight * angle)[:, None]).sum(axis=0) / weight.sum()
        point /= np.linalg.norm(point)
        if angles_deg(directions, point).mean() < angles_deg(directions, best).mean():
            best = point
    return best


def held_out_errors(network: ConvNet, images: Images, device: str) -> dict[str, float]:
    """Angles [deg] on held-out images: mean and median of the network, mean of the best direction for the others."""
    directions = viewing_directions(images.labels).numpy()
    truth = directions[images.test]
    angle = angles_deg(predict(network, images, images.test, device).numpy(), truth)
    guess = angles_deg(best_constant_direction(directions[images.train]), truth)
    return dict(held_out_mean_deg=float(angle.mean()), held_out_median_deg=float(np.median(angle)),
                chance_deg=float(guess.mean()))


def train_pose_regressor(dataset_kwargs: dict, dest: str, recipe: Recipe = Recipe(), progress: bool = True) -> dict:
    """Trains on that data set, writes the file `dest` and returns its metadata. A failure leaves no partial file.

    The loss is half the squared chord between unit vectors, 1 - cos(angle). Raises UserError for unsuitable data.
    """
    start = time.monotonic()
    images = load_images(dataset_kwargs, recipe, progress)
    if progress:
        print(training.describe(images))
    network = training.build(3, images.pixels.shape[2], recipe.seed)
    directions = viewing_directions(images.labels).to(recipe.device)
    train = images.train

    def choose(draw: torch.Generator) -> Tensor:
        return train[torch.randint(len(train), [recipe.batch], generator=draw)]

    def loss(vectors: Tensor, index: Tensor) -> Tensor:
        return (vectors - directions[index.to(vectors.device)]).square().sum(dim=1).mean() / 2

    def judge() -> str:
        return f"{held_out_errors(network, images, recipe.device)['held_out_mean_deg']:.2f} deg"

    training.fit(network, images, choose, loss, recipe, judge, progress)
    errors = held_out_errors(network, images, recipe.device)
    metadata = dict(kind="pose_regressor", **training.summary(images, recipe, time.monotonic() - start), **errors)
    save_network(dest, network, metadata)
    return metadata


def require_data(dataset_kwargs: dict) -> None:
    """Raises UserError if the data have no cameras to learn from."""
    open_with_cameras(dataset_kwargs).close()


def make_detector(dataset_kwargs: dict, path: str, device: str) -> None:
    """Trains on that data set, not mirrored, for the cache of detectors."""
    print(f"Training a pose regressor on {dataset_kwargs['path']} ...")
    train_pose_regressor(dict(dataset_kwargs, xflip=False), path, replace(Recipe(), device=device))
