"""The cameras of a data set: where they stand, drawn from the seed of the scene and the number of the view."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dataset_preprocessing.procedural.kinds import KINDS, VIEW_STREAM
from dataset_preprocessing.procedural.scenes import Dice

# Ranges of yaw and elevation [rad], radius and focal length. Uniform in both angles, so that the ends of the ranges are seen as
# often as the middle; FFHQ's own cameras crowd around the front.
VIEWS = {
    "heads": ((-0.7, 0.7), (-0.25, 0.25), 2.7, 4.2647),
    "cars": ((-math.pi, math.pi), (math.radians(5), math.radians(60)), 1.3, 1.7074),
}


def sample_angles(kind: str, seed: int, view: int = 0) -> tuple[float, float]:
    """Yaw and elevation [rad] of one view of a scene."""
    yaw_range, pitch_range, _, _ = VIEWS[kind]
    dice = Dice(KINDS[kind][0], VIEW_STREAM, seed, view)
    return dice.between(*yaw_range), dice.between(*pitch_range)


def sample_labels(kind: str, seeds: Sequence[int], views: Sequence[int] | None = None) -> np.ndarray:
    """Camera labels float32 [N, 25] of these views (default: view 0) of the scenes with these seeds."""
    # Imported here, so that worker processes, which need no cameras, start without torch.
    import torch

    from camera_utils import Camera
    views = [0] * len(seeds) if views is None else views
    _, _, radius, focal = VIEWS[kind]
    angles = torch.tensor([sample_angles(kind, seed, view) for seed, view in zip(seeds, views)], dtype=torch.float64).reshape(-1, 2)
    camera = Camera.look_at(angles[:, 0], angles[:, 1], radius=radius, pivot=(0, 0, 0), focal=focal)
    return camera.to_label().float().numpy()
