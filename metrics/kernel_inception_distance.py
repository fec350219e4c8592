"""Kernel Inception distance (Binkowski et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from metrics import metric_utils
from metrics.metric_utils import MetricOptions, compute_feature_stats_for_dataset, compute_feature_stats_for_generator

NUM_SUBSETS = 100
MAX_SUBSET_SIZE = 1000
MAX_REAL = 1_000_000                     # images, for the _full metric


def kernel_distance(features_gen: np.ndarray, features_real: np.ndarray, num_subsets: int = NUM_SUBSETS,
                    max_subset_size: int = MAX_SUBSET_SIZE, seed: int = 0,
                    done: Callable[[int], object] | None = None) -> float:
    """Mean over random subsets of the unbiased squared MMD (their equation 4), from features [N, D] and [M, D].

    The kernel is (x . y / D + 1)^3. A subset has equally many rows of both kinds, at most `max_subset_size`, drawn
    without replacement; they derive from the seed. The result may be slightly negative. done(1) is called after each.
    """
    size = min(len(features_gen), len(features_real), max_subset_size)
    assert size >= 2, f"{len(features_gen)} and {len(features_real)} features, expected two or more"
    draw = metric_utils.rng(seed, "kid subsets", 0)
    total = 0.0
    for _ in range(num_subsets):
        gen, real = (np.asarray(rows[draw.choice(len(rows), size, replace=False)], dtype=np.float64)
                     for rows in (features_gen, features_real))
        total += _squared_mmd(gen, real)
        if done is not None:
            done(1)
    return float(total / num_subsets)


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """x, y: [m, D]."""
    m, width = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / width + 1) ** 3

    def mean_of_pairs(a: np.ndarray) -> float:
        """Mean kernel of pairs of different rows."""
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (m * (m - 1))

    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean()


def compute_kid(opts: MetricOptions, max_real: int | None, num_gen: int) -> float:
    real = compute_feature_stats_for_dataset(opts, "inception", max_items=max_real, capture_all=True)
    gen = compute_feature_stats_for_generator(opts, "inception", max_items=num_gen, capture_all=True)
    with opts.bar(NUM_SUBSETS, "subsets", "sets") as bar:
        return kernel_distance(gen.get_all(), real.get_all(), seed=opts.seed, done=bar.update)


def kid_full(opts: MetricOptions) -> dict:
    """Against all real images up to MAX_REAL, not mirrored."""
    return {opts.metric: compute_kid(opts.unmirrored(), max_real=MAX_REAL, num_gen=opts.num_samples)}


def kid(opts: MetricOptions) -> dict:
    """Against as many real images as generated ones."""
    return {opts.metric: compute_kid(opts, max_real=opts.num_samples, num_gen=opts.num_samples)}
