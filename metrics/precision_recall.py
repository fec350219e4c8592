"""Precision and recall of manifolds (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from metrics.metric_utils import MetricOptions, compute_feature_stats_for_dataset, compute_feature_stats_for_generator

NEIGHBOURS = 3
MAX_REAL = 200_000                       # images, for the _full metric
BLOCK = 2048                             # rows of the distance matrix at a time; 200000 columns take 1.6 GB


def precision_recall(features_gen: np.ndarray | Tensor, features_real: np.ndarray | Tensor,
                     nhood_size: int = NEIGHBOURS, block: int = BLOCK, device: torch.device | str = "cpu",
                     done: Callable[[int], object] | None = None) -> tuple[float, float]:
    """(precision, recall) from features [N, D] and [M, D].

    The manifold of a set is the union of balls about its rows, each reaching to the row's `nhood_size`-th nearest
    neighbour. Precision is the share of generated rows on the real manifold, recall that of real rows on the generated
    one. done(count) is called with the numbers of rows compared, 2 (N + M) in all.
    """
    gen, real = (torch.as_tensor(rows, dtype=torch.float32, device=device) for rows in (features_gen, features_real))
    assert min(len(gen), len(real)) > nhood_size, f"{len(gen)} and {len(real)} features, expected over {nhood_size}"
    done = done or (lambda count: None)
    return _share_within(real, gen, nhood_size, block, done), _share_within(gen, real, nhood_size, block, done)


def _share_within(manifold: Tensor, probes: Tensor, nhood_size: int, block: int,
                  done: Callable[[int], object]) -> float:
    """Share of the probes on the manifold."""
    radius, hits = [], []
    for rows in manifold.split(block):                  # + 1: the nearest row to a row is itself
        radius.append(_distances(rows, manifold).kthvalue(nhood_size + 1, dim=1).values)
        done(len(rows))
    radius = torch.cat(radius)
    for rows in probes.split(block):
        hits.append((_distances(rows, manifold) <= radius).any(dim=1))
        done(len(rows))
    return float(torch.cat(hits).double().mean())


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Euclidean distances [R, C] of rows [R, D] and columns [C, D]."""
    return torch.cdist(rows[None], columns[None])[0]


def compute_pr(opts: MetricOptions, max_real: int | None, num_gen: int) -> dict[str, float]:
    real = compute_feature_stats_for_dataset(opts, "vgg16", max_items=max_real, capture_all=True)
    gen = compute_feature_stats_for_generator(opts, "vgg16", max_items=num_gen, capture_all=True)
    with opts.bar(2 * (gen.count + real.count), "neighbours", "rows") as bar:
        precision, recall = precision_recall(gen.get_all(), real.get_all(), device=opts.device, done=bar.update)
    return {f"{opts.metric}_precision": precision, f"{opts.metric}_recall": recall}


def pr_full(opts: MetricOptions) -> dict:
    """Against all real images up to MAX_REAL, not mirrored."""
    return compute_pr(opts.unmirrored(), max_real=MAX_REAL, num_gen=opts.num_samples)


def pr(opts: MetricOptions) -> dict:
    """Against as many real images as generated ones."""
    return compute_pr(opts, max_real=opts.num_samples, num_gen=opts.num_samples)
