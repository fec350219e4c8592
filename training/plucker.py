"""The published ray maps, under the names that the released code gave them: `camera_utils.rays` with convention='published'.

H and W must be equal. intrinsics [N, 3, 3], c2w [N, 4, 4], any dtype; the result keeps a floating one and is float32 for integers. If all intrinsics sum to
zero, the identity takes their place. `jitter` sends the ray through a random point of each pixel.
"""

from __future__ import annotations

import torch

from camera_utils import rays
from camera_utils.camera import Camera


def get_rays(H: int, W: int, intrinsics: torch.Tensor, c2w: torch.Tensor, jitter: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins and unit directions, [N, 3, H, W] each, in float32 at least."""
    camera = Camera(c2w, intrinsics)
    x, y = rays.image_grid(H, W, "published", jitter=jitter, dtype=torch.promote_types(c2w.dtype, torch.float32), device=c2w.device)
    return rays.ray_origins(camera, H, W), rays.ray_directions(camera, x, y, "published")


def get_rays_single_image(H: int, W: int, intrinsics: torch.Tensor, c2w: torch.Tensor,
                          jitter: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of one camera, intrinsics [3, 3] and c2w [4, 4]: origins and unit directions, [3, H, W] each."""
    origins, directions = get_rays(H, W, intrinsics[None], c2w[None], jitter)
    return origins[0], directions[0]


def _dtype_of(c2w: torch.Tensor) -> torch.dtype:
    return c2w.dtype if c2w.is_floating_point() else torch.float32


def plucker_embedding(H: int, W: int, intrinsics: torch.Tensor, c2w: torch.Tensor, jitter: bool = False) -> torch.Tensor:
    """(direction, origin x direction), [N, 6, H, W]."""
    return rays.plucker(*get_rays(H, W, intrinsics, c2w, jitter)).to(_dtype_of(c2w))


def origin_dir_embedding(H: int, W: int, intrinsics: torch.Tensor, c2w: torch.Tensor, jitter: bool = False) -> torch.Tensor:
    """(origin, direction), [N, 6, H, W]."""
    return rays.origin_direction(*get_rays(H, W, intrinsics, c2w, jitter)).to(_dtype_of(c2w))


def two_plane_embedding(H: int, W: int, intrinsics: torch.Tensor, c2w: torch.Tensor) -> torch.Tensor:
    """Where the ray meets z = -1, then z = 1 (3 coordinates each), [N, 6, H, W]."""
    return rays.two_plane(*get_rays(H, W, intrinsics, c2w)).to(_dtype_of(c2w))
