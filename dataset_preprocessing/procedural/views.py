"""The cameras of a data set: where they stand, drawn from the seed of the scene and the number of the view.

Their ranges, radius and focal length are those that `camera_utils.datasets` lists for the kind (`kinds.CAMERAS`). Yaw
and elevation are uniform, so that the ends are seen as often as the middle; FFHQ's own cameras crowd around the front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataset_preprocessing.procedural.kinds import CAMERAS, KINDS, VIEW_STREAM
from dataset_preprocessing.procedural.scenes import Dice

# camera_utils is imported inside the functions, so that worker processes, which need no cameras, start without torch.


def sample_angles(kind: str, seed: int, view: int = 0) -> tuple[float, float]:
    """Yaw and elevation [rad] of one view of a scene."""
    from camera_utils import dataset_cameras
    row = dataset_cameras(CAMERAS[kind])
    dice = Dice(KINDS[kind][0], VIEW_STREAM, seed, view)
    return dice.between(*row.yaw_range), dice.between(*row.pitch_range)


def sample_labels(kind: str, seeds: Sequence[int], views: Sequence[int] | None = None) -> np.ndarray:
    """Camera labels float32 [N, 25] of these views (default: view 0) of the scenes with these seeds."""
    import torch

    from camera_utils import camera_for
    views = [0] * len(seeds) if views is None else views
    assert len(views) == len(seeds), (len(views), len(seeds))
    angles = torch.tensor([sample_angles(kind, seed, view) for seed, view in zip(seeds, views)], dtype=torch.float64).reshape(-1, 2)
    return camera_for(CAMERAS[kind], angles[:, 0], angles[:, 1]).to_label().float().numpy()
