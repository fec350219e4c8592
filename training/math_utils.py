"""EG3D's vector functions, for old notebooks; the project itself has `camera_utils`."""

from __future__ import annotations

import torch
from torch import Tensor

from camera_utils.poses import normalize_vecs

__all__ = ["get_ray_limits_box", "linspace", "normalize_vecs", "torch_dot", "transform_vectors"]


def transform_vectors(matrix: Tensor, vectors4: Tensor) -> Tensor:
    """A matrix [4, 4] applied to homogeneous vectors [M, 4] -> [M, 4]."""
    return vectors4 @ matrix.mT


def torch_dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products along the last axis: [..., D] -> [...]."""
    return (x * y).sum(dim=-1)


def get_ray_limits_box(
    rays_o: Tensor,                          # [..., 3]
    rays_d: Tensor,                          # [..., 3]
    box_side_length: float,
) -> tuple[Tensor, Tensor]:                  # [..., 1] each, in units of rays_d.
    """The distances at which each ray enters and leaves a cube about the world origin.

    A ray that misses the cube gets -1 and -2. If the origin is inside, the first distance is negative.
    """
    half = box_side_length / 2
    hits = torch.stack([(side - rays_o) / rays_d for side in (-half, half)])    # [2, ..., 3]: each axis has two planes
    # A ray along two planes is always or never between them. For a ray within a plane, 0 / 0 would not tell.
    along, always = rays_d == 0, torch.where(rays_o.abs() <= half, torch.inf, -torch.inf).to(rays_o.dtype)
    entry = torch.where(along, -always, hits.amin(dim=0)).amax(dim=-1, keepdim=True)
    leave = torch.where(along, always, hits.amax(dim=0)).amin(dim=-1, keepdim=True)
    meets = entry <= leave
    return torch.where(meets, entry, -1.0), torch.where(meets, leave, -2.0)


def linspace(start: Tensor, stop: Tensor, num: int) -> Tensor:
    """`num` evenly spaced tensors from `start` to `stop`, both included: [...] -> [num, ...]."""
    share = torch.linspace(0, 1, num, dtype=torch.promote_types(start.dtype, torch.float32), device=start.device)
    share = share.reshape(-1, *[1] * start.ndim)
    return start + share * (stop - start)
