"""Inception score (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np

from metrics.features import compute_feature_stats_for_generator
from metrics.metric_main import register_metric
from metrics.options import MetricOptions

NUM_SPLITS = 10


def inception_score(probs: np.ndarray, num_splits: int = NUM_SPLITS) -> tuple[float, float]:
    """(mean, standard deviation) over consecutive splits of exp E[KL(p(y|x) || p(y))], from class probabilities [N, K]."""
    probs = np.asarray(probs, dtype=np.float64)
    assert len(probs) >= num_splits, f"{len(probs)} rows do not make {num_splits} splits"
    edges = [len(probs) * i // num_splits for i in range(num_splits + 1)]
    scores = []
    for start, stop in zip(edges, edges[1:]):
        part = probs[start:stop]
        marginal = part.mean(axis=0)
        # 0 log 0 = 0; where the marginal is zero, so is all that it is a mean of.
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


@register_metric(name="is{count}", samples=50000, minimum=NUM_SPLITS, detectors=(("inception", "probabilities"),), reals=False)
def compute_is(opts: MetricOptions) -> dict:
    probs = compute_feature_stats_for_generator(opts, "inception", "probabilities", capture_all=True).get_all()
    mean, std = inception_score(probs)
    return {f"{opts.metric}_mean": mean, f"{opts.metric}_std": std}
