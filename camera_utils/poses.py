"""Random camera poses, under the names of EG3D (Chan et al., CVPR 2022) and of the ray-conditioning release.

The samplers keep EG3D's parameters, which are not all angles (docs/conventions.md): the horizontal h [rad] is pi/2 in
front and grows with the yaw, yaw = h - pi/2; the vertical v is linear in the *height* of the camera,
pi/2 at the equator.
Draws come from the global generator of `device`: all horizontal ones, then all vertical ones, [batch_size, 1] each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from camera_utils.camera import look_at_matrix, pose_matrix

_V_MARGIN = 1e-5                         # distance of v from the poles
_BLENDER_MARGIN = 1e-6                   # the same for v in [0, 1]


# ---------------------------------------------------------------------------------------------------------------------
# EG3D's parameters and true angles. Floats or tensors.

def h_to_yaw(h: Any) -> Any:
    """EG3D's horizontal parameter -> yaw [rad] from the front."""
    return h - math.pi / 2


def yaw_to_h(yaw_rad: Any) -> Any:
    """Yaw [rad] from the front -> EG3D's horizontal parameter."""
    return yaw_rad + math.pi / 2


def v_to_pitch(v: Tensor | float) -> Tensor | float:
    """EG3D's vertical parameter -> true elevation [rad]: asin(2 (pi/2 - v) / pi), where v keeps off the poles."""
    if isinstance(v, Tensor):
        return torch.asin(1 - 2 / math.pi * v.clamp(_V_MARGIN, math.pi - _V_MARGIN))
    return math.asin(1 - 2 / math.pi * min(max(v, _V_MARGIN), math.pi - _V_MARGIN))


def pitch_to_v(pitch_rad: Tensor | float) -> Tensor | float:
    """True elevation [rad] -> EG3D's vertical parameter."""
    sine = torch.sin(pitch_rad) if isinstance(pitch_rad, Tensor) else math.sin(pitch_rad)
    return math.pi / 2 * (1 - sine)


# ---------------------------------------------------------------------------------------------------------------------
# Samplers. All return cam2world [batch_size, 4, 4] in float32.

class GaussianCameraPoseSampler:
    """Cameras that look at the world origin, h and v normally distributed."""

    @staticmethod
    def sample(horizontal_mean, vertical_mean, horizontal_stddev=0, vertical_stddev=0, radius=1, batch_size=1,
               device="cpu"):
        h = _normal(batch_size, device) * horizontal_stddev + horizontal_mean
        v = _normal(batch_size, device) * vertical_stddev + vertical_mean
        return _pose_hv(h, v, radius, (0, 0, 0))


class LookAtPoseSampler:
    """Cameras that look at `lookat_position` (numbers or a tensor [3]), h and v normally distributed.

    `truncation` holds both within two standard deviations of their means. The radius is measured from the world origin.
    """

    @staticmethod
    def sample(horizontal_mean, vertical_mean, lookat_position, horizontal_stddev=0, vertical_stddev=0, radius=1,
               batch_size=1, device="cpu", truncation=False):
        deviations = [_normal(batch_size, device), _normal(batch_size, device)]
        if truncation:
            deviations = [deviation.clamp(-2, 2) for deviation in deviations]
        h = deviations[0] * horizontal_stddev + horizontal_mean
        v = deviations[1] * vertical_stddev + vertical_mean
        return _pose_hv(h, v, radius, lookat_position)


class UniformCameraPoseSampler:
    """Cameras that look at the world origin, h and v uniform within +-stddev of their means."""

    @staticmethod
    def sample(horizontal_mean, vertical_mean, horizontal_stddev=0, vertical_stddev=0, radius=1, batch_size=1,
               device="cpu"):
        h = (_uniform(batch_size, device) * 2 - 1) * horizontal_stddev + horizontal_mean
        v = (_uniform(batch_size, device) * 2 - 1) * vertical_stddev + vertical_mean
        return _pose_hv(h, v, radius, (0, 0, 0))


class UniformBlenderPoseSampler:
    """Cameras all around the origin of a world with z up: azimuth 2 pi h from +x towards +y, h and v in [0, 1]."""

    @staticmethod
    def sample(radius=1, batch_size=1, device="cpu"):
        """Uniform over the whole sphere."""
        h, v = _uniform(batch_size, device), _uniform(batch_size, device)
        return UniformBlenderPoseSampler.sample_hv(h, v, radius=radius, batch_size=batch_size, device=device)

    @staticmethod
    def sample_hv(h_val, v_val, radius=1, batch_size=1, device="cpu"):
        """Poses for h and v (numbers, or tensors [batch_size, 1]): v = 0 looks from below, v = 1 from above."""
        h, v = _column(h_val, batch_size, device), _column(v_val, batch_size, device)
        return _pose_z_up(2 * math.pi * h, torch.arccos(2 * v.clamp(_BLENDER_MARGIN, 1 - _BLENDER_MARGIN) - 1), radius)

    @staticmethod
    def sample_upper_hemi(radius=1, batch_size=1, device="cpu"):
        """The released rule: arccos(v) + 0.5 from the zenith, which gives elevations of -28.6 to +61.4 degrees."""
        h, v = _uniform(batch_size, device), _uniform(batch_size, device)
        return _pose_z_up(2 * math.pi * h, torch.arccos(v) + 0.5, radius)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the samplers that have names in EG3D.

def create_cam2world_matrix(forward_vector: Tensor, origin: Tensor) -> Tensor:
    """Upright cameras (y up) from viewing directions (any length) and positions [N, 3] -> cam2world [N, 4, 4]."""
    return pose_matrix(normalize_vecs(forward_vector), origin, up=_axis(1, origin))


def create_blender_cam2world_matrix(forward_vector: Tensor, origin: Tensor) -> Tensor:
    """The same in a world with z up."""
    return pose_matrix(normalize_vecs(forward_vector), origin, up=_axis(2, origin))


def FOV_to_intrinsics(fov_degrees: float, device: torch.device | str = "cpu") -> Tensor:
    """Normalised intrinsics [3, 3] in float32 of a *diagonal* field of view [degrees].

    EG3D's rounded pi and square root are kept: its data sets and checkpoints carry focal lengths made with them.
    """
    half_angle_rad = fov_degrees * 3.14159 / 360
    focal = 1 / (1.414 * math.tan(half_angle_rad))
    return torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float32, device=device)


def normalize_vecs(vectors: Tensor) -> Tensor:
    """Vectors [..., D] divided by their lengths."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------

def _pose_hv(h: Tensor, v: Tensor, radius: float, target: Any) -> Tensor:
    """EG3D's parameters [N, 1] -> cam2world [N, 4, 4]."""
    zenith = torch.arccos(1 - 2 / math.pi * v.clamp(_V_MARGIN, math.pi - _V_MARGIN))
    origin = radius * torch.cat([-zenith.sin() * h.cos(), zenith.cos(), zenith.sin() * h.sin()], dim=1)
    target = torch.as_tensor(target, dtype=origin.dtype, device=origin.device).expand_as(origin)
    return look_at_matrix(origin, target, up=_axis(1, origin))


def _pose_z_up(azimuth: Tensor, zenith: Tensor, radius: float) -> Tensor:
    """Spherical angles [rad] about z, [N, 1] each -> cam2world [N, 4, 4]."""
    origin = radius * torch.cat([zenith.sin() * azimuth.cos(), zenith.sin() * azimuth.sin(), zenith.cos()], dim=1)
    return look_at_matrix(origin, torch.zeros_like(origin), up=_axis(2, origin))


def _axis(index: int, like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device)[index]


def _normal(batch_size: int, device: Any) -> Tensor:
    return torch.randn((batch_size, 1), dtype=torch.float32, device=device)


def _uniform(batch_size: int, device: Any) -> Tensor:
    return torch.rand((batch_size, 1), dtype=torch.float32, device=device)


def _column(value: Any, batch_size: int, device: Any) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float32, device=device)
    return (value.reshape(-1, 1) if value.ndim else value.reshape(1, 1)).expand(batch_size, 1)
