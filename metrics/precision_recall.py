"""Precision and recall of manifolds (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from metrics.features import compute_feature_stats_for_dataset, compute_feature_stats_for_generator
from metrics.metric_main import check_reals, register_metric
from metrics.options import MetricOptions

NEIGHBOURS = 3
MAX_REAL = 200_000                       # of the _full metric
BLOCK = 2048                             # rows of the distance matrix at a time; 200000 columns take 1.6 GB


def precision_recall(features_gen: np.ndarray | torch.Tensor, features_real: np.ndarray | torch.Tensor, nhood_size: int = NEIGHBOURS,
                     block: int = BLOCK, device: torch.device | str = "cpu", done: Callable[[int], object] | None = None) -> tuple[float, float]:
    """(precision, recall) from features [N, D] and [M, D].

    The manifold of a set is the union of balls about its rows, each reaching to the row's `nhood_size`-th nearest neighbour. Precision is the share of
    generated rows on the real manifold, recall that of real rows on the generated one. done: told how many rows were compared, 2 (N + M) in all.
    """
    gen, real = (torch.as_tensor(rows, dtype=torch.float32, device=device) for rows in (features_gen, features_real))
    assert min(len(gen), len(real)) > nhood_size, f"{len(gen)} and {len(real)} features have no {nhood_size} neighbours each"
    done = done or (lambda count: None)
    return _share_within(real, gen, nhood_size, block, done), _share_within(gen, real, nhood_size, block, done)


def _share_within(manifold: torch.Tensor, probes: torch.Tensor, nhood_size: int, block: int, done: Callable[[int], object]) -> float:
    radius, hits = [], []
    for rows in manifold.split(block):                  # the nearest row to a row is itself
        radius.append(_distances(rows, manifold).kthvalue(nhood_size + 1, dim=1).values)
        done(len(rows))
    radius = torch.cat(radius)
    for rows in probes.split(block):
        hits.append((_distances(rows, manifold) <= radius).any(dim=1))
        done(len(rows))
    return float(torch.cat(hits).double().mean())


def _distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Euclidean distances [R, C]."""
    return torch.cdist(rows[None], columns[None])[0]


def compute_pr(opts: MetricOptions, max_real: int | None, num_gen: int) -> dict[str, float]:
    real = compute_feature_stats_for_dataset(opts, "vgg16", max_items=max_real, capture_all=True)
    gen = compute_feature_stats_for_generator(opts, "vgg16", num_gen=num_gen, capture_all=True)
    with opts.bar(2 * (gen.count + real.count), "neighbours", "rows") as bar:
        precision, recall = precision_recall(gen.get_all(), real.get_all(), device=opts.device, done=bar.update)
    return {f"{opts.metric}_precision": precision, f"{opts.metric}_recall": recall}


@register_metric(name="pr{count}3_full", samples=50000, minimum=NEIGHBOURS + 1, detectors=(("vgg16", "features"),))
def pr_full(opts: MetricOptions) -> dict:
    return compute_pr(opts.unmirrored(), max_real=MAX_REAL, num_gen=opts.num_samples)


@register_metric(name="pr{count}3", samples=50000, minimum=NEIGHBOURS + 1, detectors=(("vgg16", "features"),), check=check_reals)
def pr(opts: MetricOptions) -> dict:
    return compute_pr(opts, max_real=opts.num_samples, num_gen=opts.num_samples)
