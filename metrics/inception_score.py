"""Inception score (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np

from metrics.metric_utils import MetricOptions, compute_feature_stats_for_generator

NUM_SPLITS = 10


def inception_score(probs: np.ndarray, num_splits: int = NUM_SPLITS) -> tuple[float, float]:
    """exp E[KL(p(y|x) || p(y))] from class probabilities [N, K]: (mean, standard deviation) over consecutive splits."""
    probs = np.asarray(probs, dtype=np.float64)
    assert len(probs) >= num_splits, f"{len(probs)} rows do not make {num_splits} splits"
    edges = [len(probs) * i // num_splits for i in range(num_splits + 1)]
    scores = []
    for start, stop in zip(edges, edges[1:]):
        part = probs[start:stop]
        marginal = part.mean(axis=0)
        # 0 log 0 counts as 0. A marginal is zero only if all its terms are.
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def compute_is(opts: MetricOptions) -> dict:
    probs = compute_feature_stats_for_generator(opts, "inception", "probabilities", capture_all=True).get_all()
    mean, std = inception_score(probs)
    return {f"{opts.metric}_mean": mean, f"{opts.metric}_std": std}
