"""The published ray maps (`camera_utils.rays` with convention='published') under the released code's names.

H and W must be equal. intrinsics: [N, 3, 3], c2w: [N, 4, 4], of any dtype. The result has the dtype of c2w, or float32
if that is an integer. If all intrinsics sum to zero, the identity replaces them. `jitter` sends the ray through a
random point of each pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camera_utils import rays
from camera_utils.camera import Camera


def get_rays(H: int, W: int, intrinsics: Tensor, c2w: Tensor, jitter: bool = False) -> tuple[Tensor, Tensor]:
    """Origins and unit directions, [N, 3, H, W] each, in float32 or float64."""
    camera = Camera(c2w, intrinsics)
    dtype = torch.promote_types(c2w.dtype, torch.float32)
    x, y = rays.image_grid(H, W, "published", jitter=jitter, dtype=dtype, device=c2w.device)
    return rays.ray_origins(camera, H, W), rays.ray_directions(camera, x, y, "published")


def get_rays_single_image(H: int, W: int, intrinsics: Tensor, c2w: Tensor,
                          jitter: bool = False) -> tuple[Tensor, Tensor]:
    """`get_rays` for one camera, intrinsics [3, 3] and c2w [4, 4]: origins and unit directions, [3, H, W] each."""
    origins, directions = get_rays(H, W, intrinsics[None], c2w[None], jitter)
    return origins[0], directions[0]


def _dtype_of(c2w: Tensor) -> torch.dtype:
    return c2w.dtype if c2w.is_floating_point() else torch.float32


def plucker_embedding(H: int, W: int, intrinsics: Tensor, c2w: Tensor, jitter: bool = False) -> Tensor:
    """(direction, origin x direction), [N, 6, H, W]."""
    return rays.plucker(*get_rays(H, W, intrinsics, c2w, jitter)).to(_dtype_of(c2w))


def origin_dir_embedding(H: int, W: int, intrinsics: Tensor, c2w: Tensor, jitter: bool = False) -> Tensor:
    """(origin, direction), [N, 6, H, W]."""
    return rays.origin_direction(*get_rays(H, W, intrinsics, c2w, jitter)).to(_dtype_of(c2w))


def two_plane_embedding(H: int, W: int, intrinsics: Tensor, c2w: Tensor) -> Tensor:
    """The points where the ray meets z = -1 and z = 1, three coordinates each, [N, 6, H, W]."""
    return rays.two_plane(*get_rays(H, W, intrinsics, c2w)).to(_dtype_of(c2w))
