"""The scene embedding: image -> unit vector, similar for all views of a scene and different for other scenes.

It takes the place of a face recogniser, for data whose dataset.json says which images show the same scene. The detector
returns float32 [N, 128]. Its file holds how well it tells held-out scenes apart.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from dnnlib import UserError
from metrics.detectors import training
from metrics.detectors.convnet import ConvNet, save_network
from metrics.detectors.dataset import read_scene_ids, shows_scenes_again
from metrics.detectors.pose_regressor import angles_deg, viewing_directions
from metrics.detectors.training import Images, Recipe, load_images, open_with_cameras, predict

USUAL = Recipe(kimg=60, batch=256)
DIMENSIONS = 128
TEMPERATURE = 0.1                        # of the softmax over cosine similarities
MAX_JUDGED = 1500                        # held-out images; all their pairs are compared


def require_views(path: str) -> None:
    """Raises UserError if no two images of the data show the same scene."""
    ids = read_scene_ids(path)
    if not shows_scenes_again(ids):
        what = "dataset.json names no scenes"
        if ids is not None:
            what = f"its {len(ids)} images show {len(ids)} scenes, each once"
        raise UserError(f"--data={path}: {what}; a scene embedding is learned from two or more views of a scene: give "
                        "such data, for example render some "
                        "(`python -m dataset_preprocessing.procedural.render ... --views-per-scene=6`)")


def contrastive_loss(vectors: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """NT-Xent loss (Chen et al. 2020, A Simple Framework for Contrastive Learning, equation 1).

    vectors: unit vectors [2 B, D]; rows i and B + i are two views of scene i. Cross-entropy of finding the other view
    among all other rows by cosine similarity.
    """
    count = len(vectors) // 2
    logits = vectors @ vectors.T / temperature                              # [2 B, 2 B]
    logits = logits.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=logits.device), -torch.inf)
    partner = torch.arange(2 * count, dtype=torch.int64, device=logits.device).roll(count)
    return nn.functional.cross_entropy(logits, partner)


def area_under_curve(high: np.ndarray, low: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a number of `high` exceeds one of `low`. Ties count half."""
    low = np.sort(low)
    below, up_to = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
    return float((below + up_to).mean() / (2 * len(low)))


def verification_accuracy(high: np.ndarray, low: np.ndarray) -> float:
    """Share of right answers to "the same scene?" at the best threshold. Both kinds of pairs count alike."""
    thresholds = np.unique(np.quantile(np.concatenate([high, low]), np.linspace(0, 1, 1001)))
    accepted = 1 - np.searchsorted(np.sort(high), thresholds, side="left") / len(high)
    refused = np.searchsorted(np.sort(low), thresholds, side="left") / len(low)
    return float(((accepted + refused) / 2).max())


def held_out_scores(network: ConvNet, images: Images, device: str) -> dict[str, float]:
    """How well the network tells held-out scenes apart, from all pairs of their images.

    camera_effect: mean similarity of different scenes from near directions (the nearest tenth of pairs) minus that from
    far ones (the farthest tenth). 0 if the embedding ignores the camera.
    """
    index = images.test[:MAX_JUDGED]
    vectors = predict(network, images, index, device).double().numpy()
    scene = images.scenes[index].numpy()
    direction = viewing_directions(images.labels[index]).numpy()
    i, j = np.triu_indices(len(index), k=1)
    similarity = (vectors @ vectors.T)[i, j]
    same = scene[i] == scene[j]
    within, between = similarity[same], similarity[~same]
    angle = angles_deg(direction[i[~same]], direction[j[~same]])
    near, far = np.quantile(angle, [0.1, 0.9])
    return dict(auc=area_under_curve(within, between), accuracy=verification_accuracy(within, between),
                within=float(within.mean()), between=float(between.mean()),
                camera_effect=float(between[angle <= near].mean() - between[angle >= far].mean()))


def train_scene_embedding(dataset_kwargs: dict, dest: str, recipe: Recipe = USUAL, progress: bool = True) -> dict:
    """Trains on that data set, writes the file `dest` and returns its metadata. A failure leaves no partial file.

    Raises UserError for unsuitable data.
    """
    start = time.monotonic()
    require_views(dataset_kwargs["path"])
    images = load_images(dataset_kwargs, recipe, progress)
    if progress:
        print(training.describe(images))
    table, first, views = views_by_scene(images.scenes, images.train)
    num_test_scenes = len(torch.unique(images.scenes[images.test]))
    if len(first) < 2 or num_test_scenes < 2 or num_test_scenes == len(images.test):
        raise UserError(f"--data={dataset_kwargs['path']}: too few scenes with two or more views to train on some and "
                        "hold others out; give more")
    network = training.build(DIMENSIONS, images.pixels.shape[2], recipe.seed)
    pairs = min(recipe.batch // 2, len(first))

    def choose(draw: torch.Generator) -> Tensor:
        scenes = torch.randperm(len(first), generator=draw)[:pairs]
        count = views[scenes]
        one = (torch.rand(pairs, generator=draw, dtype=torch.float32) * count).long()
        other = (one + 1 + (torch.rand(pairs, generator=draw, dtype=torch.float32) * (count - 1)).long()) % count
        return torch.cat([table[first[scenes] + one], table[first[scenes] + other]])

    def judge() -> str:
        scores = held_out_scores(network, images, recipe.device)
        return f"AUC {scores['auc']:.4f}, similarity within {scores['within']:.3f}, between {scores['between']:.3f}"

    training.fit(network, images, choose, lambda vectors, index: contrastive_loss(vectors), recipe, judge, progress)
    scores = held_out_scores(network, images, recipe.device)
    metadata = dict(kind="scene_embedding", **training.summary(images, recipe, time.monotonic() - start),
                    **{f"held_out_{name}": value for name, value in scores.items()})
    save_network(dest, network, metadata)
    return metadata


def views_by_scene(scenes: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts images by scene. scenes: [N], of all images; items: numbers of the images to sort.

    Returns these numbers in the order of their scenes and, for each scene with two or more of them, where its images
    begin and how many they are.
    """
    order = torch.argsort(scenes[items], stable=True)
    _, counts = torch.unique_consecutive(scenes[items][order], return_counts=True)
    first = counts.cumsum(dim=0) - counts
    return items[order], first[counts >= 2], counts[counts >= 2]


def require_data(dataset_kwargs: dict) -> None:
    """Raises UserError if the data show no scene twice or have no cameras."""
    require_views(dataset_kwargs["path"])
    open_with_cameras(dataset_kwargs).close()


def make_detector(dataset_kwargs: dict, path: str, device: str) -> None:
    """Trains on that data set, not mirrored, for the cache of detectors."""
    print(f"Training a scene embedding on {dataset_kwargs['path']} ...")
    train_scene_embedding(dict(dataset_kwargs, xflip=False), path, replace(USUAL, device=device))
