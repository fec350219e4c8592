"""`camera_stats`: what a snapshot remembers of the cameras it was trained on, in plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from camera_utils import checks
from camera_utils.camera import LABEL_DIM, Camera


def camera_stats(labels: Any, max_examples: int = 256) -> dict:
    """Summary of labels [M, 25] (array, tensor or lists; M >= 1), of plain Python numbers and lists: it survives JSON.

    num_labels
    pivot           [3]     point nearest to all viewing axes (least squares)
    radius                  mean distance of the positions from the world origin
    focal, focal_y          mean focal lengths in image widths and heights
    principal_point [2]     mean, in image widths and heights
    up                      'y' or 'z': the world axis against which the cameras stand upright
    yaw_mean, pitch_mean    [rad], of the positions; the yaw's is the mean direction (0 where the cameras stand all around)
    yaw_range, pitch_range  [2] [rad]; the yaw's may reach beyond +-pi, so that it is one interval
    examples        [K, 25] up to `max_examples` of the labels, picked evenly
    """
    labels = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels, dtype=np.float64)
    assert labels.ndim == 2 and labels.shape[1] == LABEL_DIM and len(labels) > 0, f"labels of shape {list(labels.shape)}, expected [M, {LABEL_DIM}]"
    camera = Camera.from_label(labels)
    pose, lens = camera.cam2world.numpy(), camera.intrinsics.numpy()
    pivot, _ = checks.closest_point_to_axes(pose[:, :3, 3], pose[:, :3, 2])
    up = checks.world_up(pose)
    yaw_rad, pitch_rad = (angle.numpy() for angle in camera.yaw_pitch(up))
    yaw_mean, yaw_range = _circular(yaw_rad)
    picks = np.unique(np.linspace(0, len(labels) - 1, min(max_examples, len(labels))).round().astype(int))
    return dict(
        num_labels=len(labels),
        pivot=pivot.tolist(),
        radius=float(np.linalg.norm(pose[:, :3, 3], axis=1).mean()),
        focal=float(lens[:, 0, 0].mean()),
        focal_y=float(lens[:, 1, 1].mean()),
        principal_point=lens[:, :2, 2].mean(axis=0).tolist(),
        up=up,
        yaw_mean=yaw_mean,
        yaw_range=yaw_range,
        pitch_mean=float(pitch_rad.mean()),
        pitch_range=[float(pitch_rad.min()), float(pitch_rad.max())],
        examples=labels[picks].tolist(),
    )


def _circular(angle_rad: np.ndarray) -> tuple[float, list[float]]:
    """Mean direction, and the range of the angles laid out about it."""
    resultant = np.exp(1j * angle_rad).mean()
    mean = float(np.angle(resultant)) if abs(resultant) > 0.1 else 0.0          # all around: no direction is the mean one
    laid_out = mean + np.angle(np.exp(1j * (angle_rad - mean)))
    return mean, [float(laid_out.min()), float(laid_out.max())]
