"""`Camera`: a batch of pinhole cameras, and how it changes when its image is edited.

Axes, units and angles are those of docs/conventions.md: OpenCV cam2world, intrinsics in units of the image size, true
angles [rad] from the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LABEL_DIM = 25                           # cam2world [4, 4], then intrinsics [3, 3], both row by row

# A world with z up is the world with y up, turned about x: up y -> z, front z -> -y. Right stays x: yaw keeps its sign.
_FROM_Y_UP = {"y": ((1, 0, 0), (0, 1, 0), (0, 0, 1)), "z": ((1, 0, 0), (0, 0, -1), (0, 1, 0))}


@dataclass(frozen=True)
class Camera:
    """N cameras.

    cam2world:  [N, 4, 4]: x right, y down, z forward of the camera -> world (OpenCV).
    intrinsics: [N, 3, 3]: camera -> image coordinates, in which the image is the unit square, (0, 0) at its top left.
    Both are floating point; integers become float32.
    """

    cam2world: Tensor
    intrinsics: Tensor

    def __post_init__(self):
        pose, lens = self.cam2world, self.intrinsics
        fits = pose.ndim == 3 and pose.shape[1:] == (4, 4) and lens.shape == (pose.shape[0], 3, 3)
        assert fits, f"cam2world {list(pose.shape)} and intrinsics {list(lens.shape)}, expected [N, 4, 4] and [N, 3, 3]"
        for name, tensor in (("cam2world", pose), ("intrinsics", lens)):
            if not tensor.is_floating_point():                  # whole numbers: nothing derived from them is whole
                object.__setattr__(self, name, tensor.to(torch.float32))

    # --- construction

    @staticmethod
    def from_label(c: Tensor | np.ndarray | Sequence) -> Camera:
        """Labels [N, 25], or one label [25], as cameras. Keeps dtype, device and gradient; lists become float32."""
        if not isinstance(c, Tensor):
            c = torch.tensor(c, dtype=None if isinstance(c, np.ndarray) else torch.float32)
        c = c[None] if c.ndim == 1 else c
        assert c.ndim == 2 and c.shape[1] == LABEL_DIM, f"labels of shape {list(c.shape)}, expected [N, {LABEL_DIM}]"
        return Camera(c[:, :16].reshape(-1, 4, 4), c[:, 16:].reshape(-1, 3, 3))

    @staticmethod
    def look_at(
        yaw: Tensor | float,                              # Angle of the position from the front, towards +x [rad].
        pitch: Tensor | float,                            # Elevation of the position [rad].
        radius: Tensor | float,                           # Distance from the world origin.
        pivot: Tensor | Sequence[float] = (0, 0, 0),      # Point in the centre of the view [3] or [N, 3].
        focal: Tensor | float = 1.0,                      # Focal length in image widths.
        principal_point: Tensor | Sequence[float] = (0.5, 0.5),   # In image widths and heights [2] or [N, 2].
        focal_y: Tensor | float | None = None,            # Focal length in image heights, None = the same number.
        up: str = "y",                                          # World axis that points up: y (EG3D) or z (Blender).
        dtype: torch.dtype | None = None,                       # None = that of the tensors given, else float32.
        device: torch.device | str | None = None,               # None = that of the tensors given, else the CPU.
    ) -> Camera:
        """Upright cameras from angles. Numbers and tensors broadcast to [N]; gradients reach the tensors.

        The radius is measured from the world origin; the pivot only turns the gaze. A camera right above or below its
        pivot has no upright pose; it gets the right axis that its yaw implies.
        """
        given = [v for v in (yaw, pitch, radius, pivot, focal, principal_point, focal_y) if isinstance(v, Tensor)]
        device = device if device is not None else (given[0].device if given else None)
        dtype = dtype if dtype is not None else _common_float(given)

        def tensor(value: Any) -> Tensor:
            return torch.as_tensor(value, dtype=dtype, device=device)

        rows = [torch.atleast_1d(tensor(value)) for value in (yaw, pitch, radius, focal)]
        yaw, pitch, radius, focal_x = torch.broadcast_tensors(*rows)
        focal_y = focal_x if focal_y is None else tensor(focal_y).expand_as(yaw)
        pivot = tensor(pivot).expand(len(yaw), 3)
        centre = tensor(principal_point).expand(len(yaw), 2)

        to_world = tensor(_frame(up))                                                               # [3, 3]
        level = pitch.cos()
        position = radius[:, None] * torch.stack([level * yaw.sin(), pitch.sin(), level * yaw.cos()], dim=1)
        origin = _rotate(to_world, position)
        side = _rotate(to_world, torch.stack([yaw.cos(), torch.zeros_like(yaw), -yaw.sin()], dim=1))
        cam2world = look_at_matrix(origin, pivot, up=to_world[:, 1], fallback_right=side)
        zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
        intrinsics = torch.stack([focal_x, zero, centre[:, 0], zero, focal_y, centre[:, 1], zero, zero, one], dim=1)
        return Camera(cam2world, intrinsics.reshape(-1, 3, 3))

    @staticmethod
    def from_stats(stats: dict, yaw: Tensor | float, pitch: Tensor | float, **kwargs: Any) -> Camera:
        """Cameras at these angles [rad], otherwise like those that `camera_stats` summarised."""
        return Camera.look_at(yaw, pitch, stats["radius"], stats["pivot"], stats["focal"], stats["principal_point"],
                              focal_y=stats.get("focal_y"), up=stats.get("up", "y"), **kwargs)

    @staticmethod
    def cat(cameras: Sequence[Camera]) -> Camera:
        return Camera(torch.cat([cam.cam2world for cam in cameras]), torch.cat([cam.intrinsics for cam in cameras]))

    # --- properties

    def __len__(self) -> int:
        return self.cam2world.shape[0]

    def __getitem__(self, index: Any) -> Camera:
        """A selection of the cameras; an integer gives a batch of one."""
        if isinstance(index, int):
            index = range(len(self))[index]                     # raises IndexError, so that iteration ends
            index = slice(index, index + 1)
        return Camera(self.cam2world[index], self.intrinsics[index])

    def to_label(self) -> Tensor:
        """[N, 25]."""
        return torch.cat([self.cam2world.flatten(1), self.intrinsics.flatten(1)], dim=1)

    def to(self, *args: Any, **kwargs: Any) -> Camera:
        """Changes dtype or device, as `torch.Tensor.to` does."""
        return Camera(self.cam2world.to(*args, **kwargs), self.intrinsics.to(*args, **kwargs))

    @property
    def origin(self) -> Tensor:
        """Positions in the world, [N, 3]."""
        return self.cam2world[:, :3, 3]

    @property
    def forward(self) -> Tensor:
        """Viewing directions in the world, [N, 3]."""
        return self.cam2world[:, :3, 2]

    def yaw_pitch(self, up: str = "y") -> tuple[Tensor, Tensor]:
        """Angles [rad] of the positions about the world origin, [N] each: yaw in (-pi, pi], pitch in [-pi/2, pi/2]."""
        return yaw_pitch(self.origin, up)

    # --- edits of the image

    def mirror(self) -> Camera:
        """The cameras that see the mirrored scene (x -> -x in the world) as the mirrored image. An involution."""
        flip_world = self.cam2world.new_tensor([-1, 1, 1, 1])
        cam2world = flip_world[:, None] * self.cam2world * flip_world                                # S M S
        (fx, skew, cx), (_, fy, cy) = (row.unbind(dim=1) for row in self.intrinsics[:, :2].unbind(dim=1))
        return Camera(cam2world, self._with_lens(fx, -skew, 1 - cx, fy, cy))

    def crop(self, left: Tensor | float, top: Tensor | float, width: Tensor | float,
             height: Tensor | float) -> Camera:
        """The cameras of a window of the image, in image units: crop(0, 0, 1, 1) changes nothing.

        A window beyond the image is padding: crop(-0.5, 0, 2, 1) is a letterbox with half an image width on each side.
        """
        (fx, skew, cx), (_, fy, cy) = (row.unbind(dim=1) for row in self.intrinsics[:, :2].unbind(dim=1))
        lens = self._with_lens(fx / width, skew / width, (cx - left) / width, fy / height, (cy - top) / height)
        return Camera(self.cam2world, lens)

    def _with_lens(self, fx: Tensor, skew: Tensor, cx: Tensor, fy: Tensor, cy: Tensor) -> Tensor:
        """Intrinsics [N, 3, 3] with other numbers, [N] each."""
        rows = [torch.stack([fx, skew, cx], dim=1), torch.stack([torch.zeros_like(fy), fy, cy], dim=1)]
        return torch.cat([torch.stack(rows, dim=1), self.intrinsics[:, 2:]], dim=1)                  # [N, 3, 3]


def yaw_pitch(position: Tensor, up: str = "y") -> tuple[Tensor, Tensor]:
    """Angles [rad] of points [N, 3] about the world origin, [N] each: yaw in (-pi, pi], pitch in [-pi/2, pi/2]."""
    to_world = position.new_tensor(_frame(up))
    x, y, z = _rotate(to_world.T, position).unbind(dim=1)
    return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))


def look_at_matrix(origin: Tensor, target: Tensor, up: Tensor, fallback_right: Tensor | None = None) -> Tensor:
    """cam2world [N, 4, 4] of upright cameras at origin [N, 3] that look at target [N, 3]; `up` [3] is the world's."""
    return pose_matrix(torch.nn.functional.normalize(target - origin, dim=1, eps=1e-12), origin, up, fallback_right)


def pose_matrix(forward: Tensor, origin: Tensor, up: Tensor, fallback_right: Tensor | None = None) -> Tensor:
    """cam2world [N, 4, 4] from unit viewing directions [N, 3], positions [N, 3] and the world's up [3] or [N, 3].

    `fallback_right` [N, 3]: the right axis of cameras that look along `up`.
    """
    right = torch.linalg.cross(forward, up.expand_as(forward))
    if fallback_right is not None:
        right = torch.where((right * right).sum(dim=1, keepdim=True) < 1e-12, fallback_right, right)
    right = torch.nn.functional.normalize(right, dim=1, eps=1e-12)
    down = torch.linalg.cross(forward, right)
    top = torch.stack([right, down, forward, origin], dim=2)                                        # [N, 3, 4]
    last_row = torch.zeros_like(top[:, :1])
    last_row[:, :, 3] = 1
    return torch.cat([top, last_row], dim=1)


def _frame(up: str) -> tuple:
    assert up in _FROM_Y_UP, f"up={up!r}, expected one of {sorted(_FROM_Y_UP)}"
    return _FROM_Y_UP[up]


def _rotate(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Applies [3, 3] to [N, 3], by sums of products so that autocast keeps the precision."""
    return (vectors[:, None, :] * matrix).sum(dim=2)


def _common_float(tensors: list[Tensor]) -> torch.dtype:
    dtype = None
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    return dtype if dtype is not None else torch.float32
