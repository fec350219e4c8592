"""The scene embedding: image -> unit vector that is alike for all views of a scene and unlike for other scenes.

    python -m metrics.scene_embedding --data=heads-multi-view.zip --dest=scenes-heads-32.pt

It stands in for a face recogniser on data whose dataset.json says which images show the same scene. The file is a detector
(metrics.detectors): images [N, 1 or 3, H, W] in the range of uint8, any size -> float32 [N, 128]. How well it tells scenes apart that it
was not trained on is stored in it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from dnnlib import UserError, cli
from dnnlib.util import run_program
from metrics.directions import angles_deg
from metrics.pose_regressor import viewing_directions
from metrics.scene_ids import read_scene_ids, shows_scenes_again
from metrics.small_command import check_dest, make_recipe, recipe_options
from metrics.small_network import SmallNetwork, save_network
from metrics.small_training import Images, Recipe, build, dataset_kwargs_for, describe, fit, load_images, open_with_cameras, predict, summary

USUAL = Recipe(kimg=60, batch=256)
DIMENSIONS = 128
TEMPERATURE = 0.1                        # of the softmax over cosine similarities
MAX_JUDGED = 1500                        # held-out images whose pairs are all compared

EXAMPLES = """\b
Examples:
  # 3,000 heads from 6 sides each, then an embedding: some minutes on one core
  python -m dataset_preprocessing.procedural.render --kind=heads --scenes=3000 --views-per-scene=6 --dest=heads-mv.zip
  python -m metrics.scene_embedding --data=heads-mv.zip --dest=scenes-heads-32.pt
\b
  # Then, with the pose regressor (python -m metrics.pose_regressor)
  python calc_metrics.py --metrics=view_consistency --network=network-snapshot-000100.pkl \\
      --pose-regressor=pose-heads-32.pt --embedding=scenes-heads-32.pt
"""


def require_views(path: str) -> None:
    """Raises UserError where the data show no scene twice."""
    ids = read_scene_ids(path)
    if not shows_scenes_again(ids):
        what = "dataset.json names no scenes" if ids is None else f"its {len(ids)} images show {len(ids)} scenes, each once"
        raise UserError(f"--data={path}: {what}; a scene embedding is learned from two or more views of a scene: give such data, "
                        "for example render some (`python -m dataset_preprocessing.procedural.render ... --views-per-scene=6`)")


def contrastive_loss(vectors: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """vectors: [2 B, D] of length 1; rows i and B + i are two views of scene i. Cross-entropy of recognising the other view among all other rows
    by its cosine similarity (NT-Xent; Chen et al. 2020, A Simple Framework for Contrastive Learning, equation 1)."""
    count = len(vectors) // 2
    logits = vectors @ vectors.T / temperature                              # [2 B, 2 B]
    logits = logits.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=logits.device), -torch.inf)
    partner = torch.arange(2 * count, dtype=torch.int64, device=logits.device).roll(count)
    return nn.functional.cross_entropy(logits, partner)


def area_under_curve(high: np.ndarray, low: np.ndarray) -> float:
    """Probability that a number of `high` exceeds one of `low`, ties by half (area under the ROC curve)."""
    low = np.sort(low)
    below, up_to = np.searchsorted(low, high, side="left"), np.searchsorted(low, high, side="right")
    return float((below + up_to).mean() / (2 * len(low)))


def verification_accuracy(high: np.ndarray, low: np.ndarray) -> float:
    """Share of right answers to "the same scene?" at the best threshold, pairs of both kinds counting alike."""
    thresholds = np.unique(np.quantile(np.concatenate([high, low]), np.linspace(0, 1, 1001)))
    accepted = 1 - np.searchsorted(np.sort(high), thresholds, side="left") / len(high)
    refused = np.searchsorted(np.sort(low), thresholds, side="left") / len(low)
    return float(((accepted + refused) / 2).max())


def held_out_scores(network: SmallNetwork, images: Images, device: str) -> dict[str, float]:
    """How well scenes are told apart that were held out, from all pairs of their images.

    camera_effect: mean similarity of different scenes seen from near directions (the nearest tenth of pairs) less that from far ones (the
    farthest tenth): 0 for an embedding that looks past the camera.
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
    return dict(auc=area_under_curve(within, between), accuracy=verification_accuracy(within, between), within=float(within.mean()),
                between=float(between.mean()), camera_effect=float(between[angle <= near].mean() - between[angle >= far].mean()))


def train_scene_embedding(dataset_kwargs: dict, dest: str, recipe: Recipe = USUAL, progress: bool = True) -> dict:
    """Trains on that data set and writes `dest`, whole or not at all. Returns the metadata. Raises UserError where the data do not do."""
    start = time.monotonic()
    require_views(dataset_kwargs["path"])
    images = load_images(dataset_kwargs, recipe, progress)
    if progress:
        print(describe(images))
    table, first, views = views_by_scene(images.scenes, images.train)
    if len(first) < 2 or len(torch.unique(images.scenes[images.test])) < 2 or len(torch.unique(images.scenes[images.test])) == len(images.test):
        raise UserError(f"--data={dataset_kwargs['path']}: too few scenes with two or more views to train on some and hold others out; give more")
    network = build(DIMENSIONS, images.pixels.shape[2], recipe.seed)
    pairs = min(recipe.batch // 2, len(first))

    def choose(draw: torch.Generator) -> torch.Tensor:
        scenes = torch.randperm(len(first), generator=draw)[:pairs]
        count = views[scenes]
        one = (torch.rand(pairs, generator=draw, dtype=torch.float32) * count).long()
        other = (one + 1 + (torch.rand(pairs, generator=draw, dtype=torch.float32) * (count - 1)).long()) % count
        return torch.cat([table[first[scenes] + one], table[first[scenes] + other]])

    def judge() -> str:
        scores = held_out_scores(network, images, recipe.device)
        return f"AUC {scores['auc']:.4f}, similarity within {scores['within']:.3f}, between {scores['between']:.3f}"

    fit(network, images, choose, lambda vectors, index: contrastive_loss(vectors), recipe, judge, progress)
    scores = held_out_scores(network, images, recipe.device)
    metadata = dict(kind="scene_embedding", **summary(images, recipe, time.monotonic() - start), **{f"held_out_{name}": v for name, v in scores.items()})
    save_network(dest, network, metadata)
    return metadata


def views_by_scene(scenes: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """scenes: [N], of all items; items: those to arrange. Returns the items in the order of their scenes, and for each scene with two views
    or more where its items begin and how many there are."""
    order = torch.argsort(scenes[items], stable=True)
    _, counts = torch.unique_consecutive(scenes[items][order], return_counts=True)
    first = counts.cumsum(dim=0) - counts
    return items[order], first[counts >= 2], counts[counts >= 2]


def require_data(dataset_kwargs: dict) -> None:
    """For the cache of detectors: raises UserError where such data show no scene twice or have no cameras."""
    require_views(dataset_kwargs["path"])
    open_with_cameras(dataset_kwargs).close()


def make_detector(dataset_kwargs: dict, path: str, device: str) -> None:
    """For the cache of detectors: trains on that data set, not mirrored."""
    print(f"Training a scene embedding on {dataset_kwargs['path']} ...")
    train_scene_embedding(dict(dataset_kwargs, xflip=False), path, replace(USUAL, device=device))


@click.command(cls=cli.Command, epilog=EXAMPLES, context_settings=dict(max_content_width=130, show_default=True))
@recipe_options(USUAL, data="Images, cameras and scenes with two or more views each: a zip or folder", batch="Images per batch: two of each scene",
                least_batch=4)
def main(data: str, dest: str, **options: Any) -> None:
    """Train a network that recognises a scene from other sides, for the metric view_consistency.

    A tenth of the scenes is held out; how well they are told apart is stored in the file.
    """
    check_dest(dest)
    m = train_scene_embedding(dataset_kwargs_for(data), dest, make_recipe(**options))
    print(f"{dest}: held-out scenes told apart with AUC {m['held_out_auc']:.4f} (accuracy {m['held_out_accuracy']:.4f}), similarity within "
          f"{m['held_out_within']:.3f}, between {m['held_out_between']:.3f}, effect of the camera {m['held_out_camera_effect']:+.3f}; "
          f"{m['num_images']} images, {m['training_time']}")


if __name__ == "__main__":
    run_program(main)
