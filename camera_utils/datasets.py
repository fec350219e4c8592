"""The cameras of a data set: of those that the project knows by name, and statistics of given labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from camera_utils import checks
from camera_utils.camera import LABEL_DIM, Camera
from dnnlib.util import UserError, closest

SAME = 0.02                              # relative difference up to which a mean over labels agrees with a row


@dataclass(frozen=True)
class DatasetCameras:
    """A row of the table. Lengths in world units, the focal length in image widths, angles [rad] from the front."""

    name: str
    pivot: tuple[float, float, float]
    radius: float                            # from the world origin
    focal: float
    yaw_range: tuple[float, float]
    pitch_range: tuple[float, float]
    up: str = "y"                            # which axis of the world points up, as in `Camera.look_at`

    def camera(self, yaw: Tensor | float, pitch: Tensor | float, **kwargs: Any) -> Camera:
        """Cameras at these angles [rad], numbers or tensors. Further arguments: `Camera.look_at`."""
        return Camera.look_at(yaw, pitch, self.radius, self.pivot, self.focal, **dict(dict(up=self.up), **kwargs))

    def differences(self, stats: dict) -> list[tuple[str, str, str]]:
        """(what, here, there) for up axis, radius and focal length if `camera_stats` contradict the row."""
        up = stats.get("up", "y")
        found = [("up axis", self.up, up)] if up != self.up else []
        numbers = [("radius", self.radius, stats.get("radius")), ("focal length", self.focal, stats.get("focal"))]
        for what, here, there in numbers:
            if there is not None and not math.isclose(here, there, rel_tol=SAME):
                found.append((what, f"{here:g}", f"{there:.4g}"))
        return found


# FFHQ and AFHQ: EG3D's crops; within these ranges a photograph shows enough of the face. cars: ShapeNet's, as EG3D and
# the released networks have them. heads, procedural-cars: those of dataset_preprocessing/procedural.
_AROUND = dict(yaw_range=(-math.pi, math.pi), pitch_range=(math.pi / 36, math.pi / 3))
DATASETS = {row.name: row for row in (
    DatasetCameras("ffhq",            (0, 0, 0.2), radius=2.7, focal=4.2647, yaw_range=(-0.4, 0.4), pitch_range=(-0.2, 0.2)),
    DatasetCameras("afhq",            (0, 0, 0.2), radius=2.7, focal=4.2647, yaw_range=(-0.4, 0.4), pitch_range=(-0.2, 0.2)),
    DatasetCameras("cars",            (0, 0, 0),   radius=1.3, focal=1.7074, **_AROUND, up="z"),
    DatasetCameras("heads",           (0, 0, 0),   radius=2.7, focal=4.2647, yaw_range=(-0.7, 0.7), pitch_range=(-0.25, 0.25)),
    DatasetCameras("procedural-cars", (0, 0, 0),   radius=1.3, focal=1.7074, **_AROUND),
)}


def dataset_cameras(name: str) -> DatasetCameras:
    """The row of that name. Raises UserError, with the closest name, for an unknown one."""
    if name not in DATASETS:
        raise UserError(f"unknown camera set {name!r}; {closest(name, DATASETS)}expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def camera_for(name: str, yaw: Tensor | float, pitch: Tensor | float, **kwargs: Any) -> Camera:
    """Cameras of the data set `name` at true angles [rad] from the front. Raises UserError for an unknown name."""
    return dataset_cameras(name).camera(yaw, pitch, **kwargs)


def camera_stats(labels: Any, max_examples: int = 256) -> dict:
    """What a snapshot keeps of the cameras it was trained on: a summary of labels [M, 25] (array, tensor or lists).

    Plain numbers and lists, as JSON has them; M >= 1.

    num_labels
    pivot           [3]     point nearest to all viewing axes (least squares)
    radius                  mean distance of the positions from the world origin
    focal, focal_y          mean focal lengths in image widths and heights
    principal_point [2]     mean, in image widths and heights
    up                      'y' or 'z': the world axis against which the cameras stand upright
    yaw_mean, pitch_mean    [rad], of the positions; the yaw's is the mean direction (0 for cameras all around)
    yaw_range, pitch_range  [2] [rad]; the yaw's may reach beyond +-pi, so that it is one interval
    examples        [K, 25] up to `max_examples` of the labels, picked evenly
    """
    labels = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels, dtype=np.float64)
    fits = labels.ndim == 2 and labels.shape[1] == LABEL_DIM and len(labels) > 0
    assert fits, f"labels of shape {list(labels.shape)}, expected [M, {LABEL_DIM}]"
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
    """Mean direction of angles [M], and their range about it."""
    resultant = np.exp(1j * angle_rad).mean()
    mean = float(np.angle(resultant)) if abs(resultant) > 0.1 else 0.0          # else the angles lie all around
    laid_out = mean + np.angle(np.exp(1j * (angle_rad - mean)))
    return mean, [float(laid_out.min()), float(laid_out.max())]
