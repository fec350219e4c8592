"""The kinds of scenes: the scene of a seed, and the cameras of its views.

Ranges, radius and focal length of the cameras are those of a row of `camera_utils.datasets`. Yaw and elevation are
uniform, so that the ends of the ranges occur as often as the middle; FFHQ's own cameras crowd around the front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataset_preprocessing.procedural.cars import sample_car
from dataset_preprocessing.procedural.heads import sample_head
from dataset_preprocessing.procedural.scenes import MAX_SEED, Dice, Scene

# kind -> the number that enters its random streams, and its sampler.
KINDS = {"heads": (1, sample_head), "cars": (2, sample_car)}
CAMERAS = {"heads": "heads", "cars": "procedural-cars"}         # kind -> row of camera_utils.datasets
SCENE_STREAM, VIEW_STREAM = 0, 1

# The functions import camera_utils themselves: worker processes need no cameras, and so they start without torch.


def sample_scene(kind: str, seed: int) -> Scene:
    """The scene of this kind and seed (0 <= seed < 2**53), the same on every machine and in every batch."""
    assert kind in KINDS, f"kind {kind!r}, expected one of {list(KINDS)}"
    number, sample = KINDS[kind]
    assert 0 <= seed <= MAX_SEED, seed
    return sample(Dice(number, SCENE_STREAM, seed), seed)


def sample_angles(kind: str, seed: int, view: int = 0) -> tuple[float, float]:
    """Yaw and elevation [rad] of one view of a scene."""
    from camera_utils import dataset_cameras
    row = dataset_cameras(CAMERAS[kind])
    dice = Dice(KINDS[kind][0], VIEW_STREAM, seed, view)
    return dice.between(*row.yaw_range), dice.between(*row.pitch_range)


def sample_labels(kind: str, seeds: Sequence[int], views: Sequence[int] | None = None) -> np.ndarray:
    """Camera labels float32 [N, 25] of these views (None: view 0) of the scenes with these seeds."""
    import torch

    from camera_utils import camera_for
    views = [0] * len(seeds) if views is None else views
    assert len(views) == len(seeds), (len(views), len(seeds))
    angles = [sample_angles(kind, seed, view) for seed, view in zip(seeds, views)]
    yaw, pitch = torch.tensor(angles, dtype=torch.float64).reshape(-1, 2).unbind(dim=1)
    return camera_for(CAMERAS[kind], yaw, pitch).to_label().float().numpy()
