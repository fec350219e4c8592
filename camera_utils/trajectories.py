"""Camera paths: t [T] in [0, 1] -> T cameras. `closed` says whether a path returns to its start.

A path over angles calls `make_camera(yaw, pitch)` [rad] for the cameras, for example
`datasets.dataset_cameras("ffhq").camera` or `functools.partial(Camera.from_stats, stats)`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camera_utils.camera import Camera
from camera_utils.files import load_camera_file
from dnnlib.util import UserError, closest

MakeCamera = Callable[[Tensor, Tensor], Camera]
Range = Sequence[float]


@dataclass(frozen=True)
class Sweep:
    """From one end of the ranges to the other at constant angular speed. Not closed."""

    make_camera: MakeCamera
    yaw_range: Range                         # [rad]
    pitch_range: Range = (0.0, 0.0)          # [rad]
    closed = False

    def __call__(self, t: Tensor) -> Camera:
        return self.make_camera(_between(self.yaw_range, t), _between(self.pitch_range, t))


@dataclass(frozen=True)
class Orbit:
    """Once around. Ranges short of a full turn give an ellipse about their middle that starts at its top; a full turn
    of yaw gives a circle at the middle pitch, from the front towards +x."""

    make_camera: MakeCamera
    yaw_range: Range                         # [rad]
    pitch_range: Range = (0.0, 0.0)          # [rad]
    closed = True

    def __call__(self, t: Tensor) -> Camera:
        turn = 2 * math.pi * t
        (yaw_mid, yaw_half), (pitch_mid, pitch_half) = _middle(self.yaw_range), _middle(self.pitch_range)
        if yaw_half >= math.pi - 1e-3:
            return self.make_camera(yaw_mid + turn, torch.full_like(t, pitch_mid))
        return self.make_camera(yaw_mid + yaw_half * turn.sin(), pitch_mid + pitch_half * turn.cos())


@dataclass(frozen=True)
class Spiral:
    """Winds outward from the middle of the ranges to their ends and back, in `turns` turns."""

    make_camera: MakeCamera
    yaw_range: Range                         # [rad]
    pitch_range: Range = (0.0, 0.0)          # [rad]
    turns: int = 3
    closed = True

    def __call__(self, t: Tensor) -> Camera:
        turn = 2 * math.pi * self.turns * t
        reach = torch.sin(math.pi * t)
        (yaw_mid, yaw_half), (pitch_mid, pitch_half) = _middle(self.yaw_range), _middle(self.pitch_range)
        return self.make_camera(yaw_mid + yaw_half * reach * turn.sin(), pitch_mid + pitch_half * reach * turn.cos())


@dataclass(frozen=True)
class Keyframes:
    """Through cameras in equal times: positions and intrinsics change linearly, orientations by the shortest turn."""

    cameras: Camera
    closed: bool = False                     # True: back from the last to the first

    @staticmethod
    def from_file(path: str | os.PathLike, closed: bool = False) -> Keyframes:
        """The cameras of a JSON file, see `load_camera_file`."""
        return Keyframes(load_camera_file(path), closed)

    def __call__(self, t: Tensor) -> Camera:
        count = len(self.cameras)
        pose, lens = self.cameras.cam2world, self.cameras.intrinsics
        place = t.to(pose) * (count if self.closed else count - 1)
        first = place.floor().long().clamp(0, count - 1 if self.closed else max(count - 2, 0))
        second = (first + 1) % count
        part = (place - first)[:, None, None]                                                       # [T, 1, 1]
        mixed = torch.lerp(pose[first], pose[second], part)
        rotation = pose[first][:, :3, :3] @ _part_of_turn(pose[first][:, :3, :3].mT @ pose[second][:, :3, :3], part)
        top = torch.cat([rotation, mixed[:, :3, 3:]], dim=2)
        return Camera(torch.cat([top, mixed[:, 3:]], dim=1), torch.lerp(lens[first], lens[second], part))


PATHS = {"orbit": Orbit, "spiral": Spiral, "sweep": Sweep}


def trajectory(name: str, make_camera: MakeCamera, yaw_range: Range,
               pitch_range: Range = (0.0, 0.0)) -> Callable[[Tensor], Camera]:
    """The path called orbit, spiral or sweep over these ranges [rad]. Raises UserError for another name."""
    if name not in PATHS:
        raise UserError(f"unknown camera path {name!r}; {closest(name, PATHS)}expected one of {', '.join(PATHS)}")
    return PATHS[name](make_camera, yaw_range, pitch_range)


def _between(ends: Range, t: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * t


def _middle(ends: Range) -> tuple[float, float]:
    """Middle and half width."""
    return (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2


def _part_of_turn(rotation: Tensor, part: Tensor) -> Tensor:
    """The share `part` [T, 1, 1] of the shortest turns [T, 3, 3] (Rodrigues' formula). A half turn goes either way."""
    double = rotation.double()
    eye = torch.eye(3, dtype=double.dtype, device=double.device)
    skew = (double - double.mT) / 2                             # sin(angle) [axis]x
    sine = torch.linalg.matrix_norm(skew, keepdim=True) / math.sqrt(2)
    cosine = (double.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] - 1) / 2
    angle = torch.atan2(sine, cosine)
    # (R + R^T)/2 = cos + (1 - cos) a a^T gives the axis a even if the sine is 0; take its largest column.
    outer = (double + double.mT) / 2 - cosine * eye
    column = outer.diagonal(dim1=1, dim2=2).argmax(dim=1)
    axis = torch.nn.functional.normalize(outer.gather(2, column[:, None, None].expand(-1, 3, 1)), dim=1)   # [T, 3, 1]
    cross = torch.linalg.cross(axis.mT.expand(-1, 3, 3), eye.expand_as(double), dim=2).mT                  # [axis]x
    sign = torch.where((cross * skew).sum(dim=(1, 2), keepdim=True) < 0, -1.0, 1.0)
    cross = cross * sign
    turned = part.double() * angle
    return (eye + turned.sin() * cross + (1 - turned.cos()) * (cross @ cross)).to(rotation.dtype)
