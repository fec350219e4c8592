"""FID by yaw: is the network as good from the side as from the front?

The real images are sorted by the yaw of their cameras into bins of equally many; generated images with cameras drawn from a bin are compared
with the real ones in it. Numbers of one run compare with one another; a bin has fewer images than the whole, so they lie above the full FID.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from camera_utils import Camera, camera_stats
from dnnlib.util import UserError
from metrics.features import FeatureStats, compute_feature_stats_for_dataset
from metrics.frechet_inception_distance import frechet_distance
from metrics.metric_main import Request, register_metric
from metrics.options import MetricOptions
from metrics.samples import gather_rows, generated_images, iterate, rng

BINS = 5
MIN_REALS = 200                          # in a bin


def yaw_rad(dataset: object) -> np.ndarray:
    """Of each item's camera the yaw of its position about the world's vertical axis, [N] [rad], from the front, in -pi .. pi."""
    labels = np.stack([dataset.get_label(i) for i in range(len(dataset))])
    return Camera.from_label(torch.from_numpy(labels).double()).yaw_pitch(camera_stats(labels)["up"])[0].numpy()


def yaw_bins(yaw: np.ndarray, num_bins: int, min_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Bins of equally many items, as near as equal yaws allow; fewer bins where they would hold less than `min_items`.

    yaw: [N]. Returns edges [B + 1] and for each item its bin, [N]. B may be 1.
    """
    num_bins = max(min(num_bins, len(yaw) // min_items), 1)
    edges = np.unique(np.quantile(yaw, np.linspace(0, 1, num_bins + 1)))
    if len(edges) < 2:
        return np.array([yaw.min(), yaw.max()]), np.zeros(len(yaw), dtype=np.int64)
    number = np.searchsorted(edges[1:-1], yaw, side="right")
    while len(edges) > 2:                                                   # equal yaws may have emptied one
        counts = np.bincount(number, minlength=len(edges) - 1)
        smallest = int(counts.argmin())
        if counts[smallest] >= min_items:
            break
        edges = np.delete(edges, smallest if smallest > 0 else 1)           # joins it with the bin before, the first with the second
        number = np.searchsorted(edges[1:-1], yaw, side="right")
    return edges, number


def check_bins(opts: MetricOptions, request: Request) -> None:
    """Two bins at least, and two generated images in each."""
    edges, number = yaw_bins(yaw_rad(opts.dataset()), BINS, MIN_REALS)
    if len(edges) < 3:
        raise UserError(f"the {len(number)} images of {opts.dataset_kwargs['path']} do not fill two bins of yaw with {MIN_REALS} or "
                        "more each; give more images, or images from more sides")
    if request.num_samples < 2 * BINS:
        raise UserError(f"{request.num_samples} images for {BINS} bins; give --samples={2 * BINS} at the least, better thousands")


@register_metric(name="fid_by_yaw{count}", samples=50000, count_optional=True, detectors=(("inception", "features"),), needs=("generator", "cameras"),
                 check=check_bins)
def fid_by_yaw(opts: MetricOptions) -> dict:
    """The mean over the bins, and of each bin its FID and, in words, its yaws and its numbers of images."""
    edges, number = yaw_bins(yaw_rad(opts.dataset()), BINS, MIN_REALS)
    num_bins = len(edges) - 1
    generated = generated_features(opts, [np.flatnonzero(number == b) for b in range(num_bins)])
    results: dict = {}
    distances = []
    for b in range(num_bins):
        real = compute_feature_stats_for_dataset(opts, "inception", index=np.flatnonzero(number == b), capture_mean_cov=True)
        ours = FeatureStats(capture_mean_cov=True)
        ours.append(generated[b::num_bins])
        distances.append(frechet_distance(*ours.get_mean_cov(), *real.get_mean_cov()))
        low, high = np.degrees(edges[b:b + 2])
        results[f"{opts.metric}_bin{b}"] = distances[-1]
        results[f"{opts.metric}_bin{b}_is"] = f"yaw {low:.1f} to {high:.1f} deg, {real.count} real and {ours.count} generated images"
    note = {} if num_bins == BINS else {f"{opts.metric}_note": f"{num_bins} bins, not {BINS}, so that each holds {MIN_REALS} real images or more"}
    return {opts.metric: math.fsum(distances) / num_bins, **results, **note}


def generated_features(opts: MetricOptions, items_of_bin: list[np.ndarray]) -> np.ndarray:
    """Features [N, D] of generated images; image i has the label of an item of bin i modulo the number of bins."""
    detector = opts.detector("inception", "features")

    def choose(i: int) -> tuple[np.ndarray, int]:
        draw = rng(opts.seed, "yaw", i)
        return draw.standard_normal(opts.G.z_dim, dtype=np.float32), int(draw.choice(items_of_bin[i % len(items_of_bin)]))

    rows, index = [], []
    batches = iterate(opts, opts.num_samples, "yaw", choose)
    for batch, images in generated_images(opts, batches, opts.num_samples, "generated images"):
        rows.append(detector(images))
        index.append(batch.index)
    return gather_rows(opts, rows, index, opts.num_samples)
