"""Pairs of images that show one thing from different sides, and pairs that show different things.

They are compared by the cosine similarity of an embedding between two images from *different* cameras: of the same latent (within) and of
different latents (between). Both kinds of pairs are made from the same cameras, so that the cameras cannot tell them apart.
"""

from __future__ import annotations

import numpy as np


def pair_similarities(embedding: np.ndarray, thing: np.ndarray, camera: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities of the pairs (i, j), i < j, of one group whose cameras differ: of the same thing, and of different things.

    embedding: [N, D], of any length; thing, camera, group: [N] integers (a thing is a latent, or a scene).
    """
    unit = np.asarray(embedding, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    within, between = [], []
    order = np.argsort(group, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        i, j = np.triu_indices(len(rows), k=1)
        i, j = rows[i], rows[j]
        differ = camera[i] != camera[j]
        same = thing[i] == thing[j]
        similarity = (unit[i] * unit[j]).sum(axis=1)
        within.append(similarity[same & differ])
        between.append(similarity[~same & differ])
    return np.concatenate(within), np.concatenate(between)


def distance_ratio(within: float, between: float) -> float:
    """Mean cosine distance (1 - similarity) within over that between: 0 where each latent stays itself from every camera, 1 where the latent
    makes no difference. Images that are all alike, 0 / 0, count as 1: there is no latent to be seen.

    Not the ratio of the similarities themselves: a good embedding has similarities near zero between things, and that ratio no bound.
    """
    if 1 - between < 1e-9:
        return 1.0
    return (1 - within) / (1 - between)


def compare_pairs(embedding: np.ndarray, thing: np.ndarray, camera: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Arguments as `pair_similarities`. Returns the mean similarity within and between, and the ratio of distances."""
    within, between = (float(pairs.mean()) for pairs in pair_similarities(embedding, thing, camera, group))
    return dict(within=within, between=between, ratio=distance_ratio(within, between))
