"""FID by yaw: is the network as good from the side as from the front?

Real images are sorted by the yaw of their cameras into bins of equal size. Generated images with cameras drawn from a
bin are compared with the real images in it. Bins compare with each other, but not with the full FID: FID falls as the
number of images grows.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from camera_utils import Camera, camera_stats
from dnnlib.util import UserError
from metrics import metric_utils
from metrics.frechet_inception_distance import frechet_distance
from metrics.metric_utils import FeatureStats, MetricOptions

BINS = 5
MIN_REALS = 200                          # real images in a bin


def yaw_rad(dataset: object) -> np.ndarray:
    """Yaw of each item's camera position about the world's vertical axis, [N] [rad]: 0 in front, from -pi to pi."""
    labels = np.stack([dataset.get_label(i) for i in range(len(dataset))])
    return Camera.from_label(torch.from_numpy(labels).double()).yaw_pitch(camera_stats(labels)["up"])[0].numpy()


def yaw_bins(yaw: np.ndarray, num_bins: int, min_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts items into bins of equal size, as far as equal yaws allow. Takes fewer bins so that each has `min_items`.

    yaw: [N]. Returns the edges of the bins [B + 1] and each item's bin [N]. B may be 1.
    """
    num_bins = max(min(num_bins, len(yaw) // min_items), 1)
    edges = np.unique(np.quantile(yaw, np.linspace(0, 1, num_bins + 1)))
    if len(edges) < 2:
        return np.array([yaw.min(), yaw.max()]), np.zeros(len(yaw), dtype=np.int64)
    number = np.searchsorted(edges[1:-1], yaw, side="right")
    while len(edges) > 2:                                                   # equal yaws may leave a bin too small
        counts = np.bincount(number, minlength=len(edges) - 1)
        smallest = int(counts.argmin())
        if counts[smallest] >= min_items:
            break
        edges = np.delete(edges, smallest if smallest > 0 else 1)           # joins it with its neighbour
        number = np.searchsorted(edges[1:-1], yaw, side="right")
    return edges, number


def check_bins(opts: MetricOptions) -> None:
    """Raises UserError if there are not two bins, or not two generated images for each."""
    edges, number = yaw_bins(yaw_rad(opts.dataset()), BINS, MIN_REALS)
    if len(edges) < 3:
        raise UserError(f"the {len(number)} images of {opts.dataset_kwargs['path']} do not fill two bins of yaw with "
                        f"{MIN_REALS} or more each; give more images, or images from more sides")
    if opts.num_samples < 2 * BINS:
        raise UserError(f"{opts.num_samples} images for {BINS} bins; give --samples={2 * BINS} or more (thousands)")


def fid_by_yaw(opts: MetricOptions) -> dict:
    """The mean over the bins; for each bin its FID and, in words, its yaws and numbers of images."""
    edges, number = yaw_bins(yaw_rad(opts.dataset()), BINS, MIN_REALS)
    num_bins = len(edges) - 1
    generated = generated_features(opts, [np.flatnonzero(number == b) for b in range(num_bins)])
    results: dict = {}
    distances = []
    for b in range(num_bins):
        items = np.flatnonzero(number == b)
        real = metric_utils.compute_feature_stats_for_dataset(opts, "inception", index=items, capture_mean_cov=True)
        ours = FeatureStats(capture_mean_cov=True)
        ours.append(generated[b::num_bins])
        distances.append(frechet_distance(*ours.get_mean_cov(), *real.get_mean_cov()))
        low, high = np.degrees(edges[b:b + 2])
        results[f"{opts.metric}_bin{b}"] = distances[-1]
        results[f"{opts.metric}_bin{b}_is"] = (f"yaw {low:.1f} to {high:.1f} deg, {real.count} real and {ours.count} "
                                               "generated images")
    if num_bins != BINS:
        note = f"{num_bins} bins, not {BINS}, so that each holds {MIN_REALS} real images or more"
        results[f"{opts.metric}_note"] = note
    return {opts.metric: math.fsum(distances) / num_bins, **results}


def generated_features(opts: MetricOptions, items_of_bin: list[np.ndarray]) -> np.ndarray:
    """Features [N, D] of generated images. Image i has the label of an item of bin i modulo the number of bins."""
    detector = opts.detector("inception", "features")

    def choose(i: int) -> tuple[np.ndarray, int]:
        draw = metric_utils.rng(opts.seed, "yaw", i)
        z = draw.standard_normal(opts.G.z_dim, dtype=np.float32)
        return z, int(draw.choice(items_of_bin[i % len(items_of_bin)]))

    rows, index = [], []
    batches = metric_utils.iterate(opts, opts.num_samples, "yaw", choose)
    for batch, images in metric_utils.generated_images(opts, batches, opts.num_samples, "generated images"):
        rows.append(detector(images))
        index.append(batch.index)
    return metric_utils.gather_rows(opts, rows, index, opts.num_samples)
