"""EG3D's vector functions, for old notebooks; the project itself has `camera_utils`."""

from __future__ import annotations

import torch

from camera_utils.poses import normalize_vecs

__all__ = ["get_ray_limits_box", "linspace", "normalize_vecs", "torch_dot", "transform_vectors"]


def transform_vectors(matrix: torch.Tensor, vectors4: torch.Tensor) -> torch.Tensor:
    """A matrix [4, 4] applied to homogeneous vectors [M, 4] -> [M, 4]."""
    return vectors4 @ matrix.mT


def torch_dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Inner products along the last axis: [..., D] -> [...]."""
    return (x * y).sum(dim=-1)


def get_ray_limits_box(
    rays_o: torch.Tensor,                    # [..., 3]
    rays_d: torch.Tensor,                    # [..., 3]
    box_side_length: float,
) -> tuple[torch.Tensor, torch.Tensor]:      # [..., 1] each, in units of rays_d.
    """How far along it each ray enters and leaves the cube of that side length about the world origin.

    A ray that misses the cube gets -1 and -2. From inside, the entry is negative.
    """
    half = box_side_length / 2
    hits = torch.stack([(side - rays_o) / rays_d for side in (-half, half)])    # [2, ..., 3]: each axis has two planes
    # A ray along two planes is between them for ever, or never. In one of them, 0 / 0 would say neither.
    along, always = rays_d == 0, torch.where(rays_o.abs() <= half, torch.inf, -torch.inf).to(rays_o.dtype)
    entry = torch.where(along, -always, hits.amin(dim=0)).amax(dim=-1, keepdim=True)
    leave = torch.where(along, always, hits.amax(dim=0)).amin(dim=-1, keepdim=True)
    meets = entry <= leave
    return torch.where(meets, entry, -1.0), torch.where(meets, leave, -2.0)


def linspace(start: torch.Tensor, stop: torch.Tensor, num: int) -> torch.Tensor:
    """`num` evenly spaced tensors from `start` to `stop`, both included: [...] -> [num, ...]."""
    share = torch.linspace(0, 1, num, dtype=torch.promote_types(start.dtype, torch.float32), device=start.device)
    share = share.reshape(-1, *[1] * start.ndim)
    return start + share * (stop - start)
