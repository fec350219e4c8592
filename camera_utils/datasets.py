"""The cameras of the data sets that the project knows by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from camera_utils.camera import Camera
from dnnlib.util import UserError, closest

SAME = 0.02                              # relative difference within which a mean over labels is the number of a row


@dataclass(frozen=True)
class DatasetCameras:
    """Where the cameras of a data set stand. Lengths in world units, the focal length in image widths, angles [rad] from the front."""

    name: str
    pivot: tuple[float, float, float]
    radius: float                            # from the world origin
    focal: float
    yaw_range: tuple[float, float]
    pitch_range: tuple[float, float]
    up: str = "y"                            # which axis of the world points up, as in `Camera.look_at`

    def camera(self, yaw: torch.Tensor | float, pitch: torch.Tensor | float, **kwargs: Any) -> Camera:
        """Cameras at these angles [rad], numbers or tensors. Further arguments: `Camera.look_at`."""
        return Camera.look_at(yaw, pitch, self.radius, self.pivot, self.focal, **dict(dict(up=self.up), **kwargs))

    def differences(self, stats: dict) -> list[tuple[str, str, str]]:
        """(what, here, there) for up axis, radius and focal length where these `camera_stats` contradict the row."""
        up = stats.get("up", "y")
        found = [("up axis", self.up, up)] if up != self.up else []
        numbers = [("radius", self.radius, stats.get("radius")), ("focal length", self.focal, stats.get("focal"))]
        for what, here, there in numbers:
            if there is not None and not math.isclose(here, there, rel_tol=SAME):
                found.append((what, f"{here:g}", f"{there:.4g}"))
        return found


# FFHQ and AFHQ: EG3D's crops; the ranges are those in which a photograph of a face shows enough of it. cars:
# ShapeNet's, as EG3D and the released networks have them. heads, procedural-cars: of dataset_preprocessing/procedural.
_AROUND = dict(yaw_range=(-math.pi, math.pi), pitch_range=(math.pi / 36, math.pi / 3))
DATASETS = {row.name: row for row in (
    DatasetCameras("ffhq",            (0, 0, 0.2), radius=2.7, focal=4.2647, yaw_range=(-0.4, 0.4), pitch_range=(-0.2, 0.2)),
    DatasetCameras("afhq",            (0, 0, 0.2), radius=2.7, focal=4.2647, yaw_range=(-0.4, 0.4), pitch_range=(-0.2, 0.2)),
    DatasetCameras("cars",            (0, 0, 0),   radius=1.3, focal=1.7074, **_AROUND, up="z"),
    DatasetCameras("heads",           (0, 0, 0),   radius=2.7, focal=4.2647, yaw_range=(-0.7, 0.7), pitch_range=(-0.25, 0.25)),
    DatasetCameras("procedural-cars", (0, 0, 0),   radius=1.3, focal=1.7074, **_AROUND),
)}


def dataset_cameras(name: str) -> DatasetCameras:
    """The row of that name. Raises UserError, with the closest name, where there is none."""
    if name not in DATASETS:
        raise UserError(f"unknown camera set {name!r}; {closest(name, DATASETS)}expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def camera_for(name: str, yaw: torch.Tensor | float, pitch: torch.Tensor | float, **kwargs: Any) -> Camera:
    """Cameras of the data set `name` at true angles [rad] from the front. Raises UserError for an unknown name."""
    return dataset_cameras(name).camera(yaw, pitch, **kwargs)
