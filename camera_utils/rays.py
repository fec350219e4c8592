"""Camera rays as feature maps, in the two conventions of docs/conventions.md.

    map = ray_map(c, height, width, convention="pinhole")        # [N, 25] -> [N, 6, H, W]

A ray is o + s d with |d| = 1. Its Plücker coordinates are (d, o x d): the same for every point o of the ray.

The functions never synchronise the device, let gradients reach the camera, and compute in float32 at least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camera_utils.camera import LABEL_DIM, Camera
from dnnlib.util import UserError

CONVENTIONS = ("pinhole", "published")


def ray_map(
    c: Tensor,                         # Camera labels [N, 25].
    height: int,                             # Rows of the map.
    width: int,                              # Columns of the map.
    convention: str = "pinhole",             # 'pinhole': that camera's rays. 'published': the released code's.
    sampling_rate: float | None = None,      # Pixels per image width of a larger canvas. None = no canvas.
    dtype: torch.dtype | None = None,        # Of the result, a floating one. None = that of c, float32 for integers.
) -> Tensor:
    """Plücker coordinates (direction, origin x direction) of the ray of each pixel, [N, 6, height, width].

    The published convention is defined for square maps (else UserError) and has no canvas: it ignores `sampling_rate`.
    """
    assert c.ndim == 2 and c.shape[1] == LABEL_DIM, f"labels of shape {list(c.shape)}, expected [N, {LABEL_DIM}]"
    camera = Camera.from_label(c)
    dtype = camera.cam2world.dtype if dtype is None else dtype
    assert dtype.is_floating_point, f"ray map of {dtype}, expected a floating dtype"
    basis, origin = ray_basis(camera, convention)                                                   # [N, 3, 3], [N, 3]
    x, y = image_grid(height, width, convention, sampling_rate, dtype=basis.dtype, device=c.device)
    moment = torch.linalg.cross(origin[:, :, None].expand_as(basis), basis, dim=1)
    # Direction and moment are both linear in (x, y, 1) up to the length of the direction, which divides both.
    raw = _affine(torch.cat([basis, moment], dim=1), x, y)                                          # [N, 6, H, W]
    return (raw * raw[:, :3].square().sum(dim=1, keepdim=True).rsqrt()).to(dtype)


def image_grid(height: int, width: int, convention: str = "pinhole", sampling_rate: float | None = None,
               jitter: bool = False, dtype: torch.dtype = torch.float32,
               device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """The coordinates (x, y) that the convention gives to the pixels: two tensors that broadcast to [height, width].

    pinhole:   image units, pixel centres at (j + 0.5) / width and (i + 0.5) / height; with a `sampling_rate`, a canvas.
    published: pixels, the row index running over x.
    jitter:    a uniformly random point of each pixel (the same for the batch) in place of its centre.
    """
    _check_convention(convention, height, width)
    if jitter:
        cols_in_pixel, rows_in_pixel = (torch.rand([height, width], dtype=dtype, device=device) for _ in range(2))
    else:
        cols_in_pixel = rows_in_pixel = 0.5
    cols = torch.arange(width, dtype=dtype, device=device)[None, :] + cols_in_pixel                 # [1 or H, W]
    rows = torch.arange(height, dtype=dtype, device=device)[:, None] + rows_in_pixel                # [H, 1 or W]
    if convention == "published":
        return rows, cols
    if sampling_rate is not None:
        return (cols - width / 2) / sampling_rate + 0.5, (rows - height / 2) / sampling_rate + 0.5
    return cols / width, rows / height


def ray_basis(camera: Camera, convention: str = "pinhole") -> tuple[Tensor, Tensor]:
    """R K^-1 [N, 3, 3], which turns (x, y, 1) into the direction of a ray, and the positions [N, 3]; float32 at least.

    Under the published convention all intrinsics count as the identity if those of the batch sum to zero.
    """
    precision = torch.promote_types(torch.promote_types(camera.cam2world.dtype, camera.intrinsics.dtype), torch.float32)
    cam2world, lens = camera.cam2world.to(precision), camera.intrinsics.to(precision)
    if convention == "published":
        lens = torch.where(lens.sum() == 0, torch.eye(3, dtype=precision, device=lens.device), lens)
    (fx, skew, cx), (_, fy, cy) = (row[:, None].unbind(dim=2) for row in lens[:, :2].unbind(dim=1))  # each [N, 1]
    right, down, forward, origin = cam2world[:, :3].unbind(dim=2)                                   # each [N, 3]
    per_x = right / fx                                          # the columns of B in B K = R, from left to right
    per_y = (down - skew * per_x) / fy
    at_zero = forward - cx * per_x - cy * per_y
    return torch.stack([per_x, per_y, at_zero], dim=2), origin


def ray_directions(camera: Camera, x: Tensor, y: Tensor, convention: str = "pinhole") -> Tensor:
    """World unit vectors [N, 3, H, W] through image points x, y, which broadcast to [H, W]; float32 at least."""
    basis, _ = ray_basis(camera, convention)
    raw = _affine(basis, x.to(basis.dtype), y.to(basis.dtype))
    return raw * raw.square().sum(dim=1, keepdim=True).rsqrt()


def ray_origins(camera: Camera, height: int, width: int) -> Tensor:
    """The positions of the cameras as a map [N, 3, height, width] (a view, nothing is copied); float32 at least."""
    origin = camera.origin.to(torch.promote_types(camera.origin.dtype, torch.float32))
    return origin[:, :, None, None].expand(-1, -1, height, width)


def plucker(origins: Tensor, directions: Tensor) -> Tensor:
    """(d, o x d) [N, 6, H, W] of rays given as [N, 3, H, W] each."""
    return torch.cat([directions, torch.linalg.cross(origins, directions, dim=1)], dim=1)


def origin_direction(origins: Tensor, directions: Tensor) -> Tensor:
    """(o, d) [N, 6, H, W]. Unlike Plücker coordinates it changes as o moves along the ray."""
    return torch.cat([origins, directions], dim=1)


def two_plane(origins: Tensor, directions: Tensor) -> Tensor:
    """Points [N, 6, H, W] where the rays meet z = -1, then z = 1 (3 coordinates each). Infinite for parallel rays."""
    hits = [origins + directions * ((plane - origins[:, 2:]) / directions[:, 2:]) for plane in (-1, 1)]
    return torch.cat(hits, dim=1)


def project(camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """World points [N, ..., 3] ([1, ..., 3]: the same for all cameras) -> image points [N, ..., 2] and depths [N, ...].

    Image points are in image units: (x W, y H) in pixels, where pixel (i, j) has its centre at (j + 0.5, i + 0.5).
    Depth is measured along the viewing direction; at or behind the camera (depth <= 0) the image point has no meaning.
    """
    precision = torch.promote_types(torch.promote_types(camera.cam2world.dtype, points.dtype), torch.float32)
    per_point = [1] * (points.ndim - 2)
    pose = camera.cam2world.to(precision).reshape(-1, *per_point, 4, 4)
    lens = camera.intrinsics.to(precision).reshape(-1, *per_point, 3, 3)
    offset = points.to(precision) - pose[..., :3, 3]                                                # [N, ..., 3]
    x, y, depth = (offset[..., None] * pose[..., :3, :3]).sum(dim=-2).unbind(dim=-1)                # R^T (p - o)
    x, y = x / depth, y / depth
    image_x = lens[..., 0, 0] * x + lens[..., 0, 1] * y + lens[..., 0, 2]
    image_y = lens[..., 1, 1] * y + lens[..., 1, 2]
    return torch.stack([image_x, image_y], dim=-1), depth


def _affine(columns: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """columns [N, K, 3] times (x, y, 1) with x, y broadcasting to [H, W] -> [N, K, H, W]."""
    per_x, per_y, at_zero = columns[..., None, None].unbind(dim=2)                                  # each [N, K, 1, 1]
    return per_x * x + (per_y * y + at_zero)


def _check_convention(convention: str, height: int, width: int) -> None:
    assert convention in CONVENTIONS, f"ray convention {convention!r}, expected one of {CONVENTIONS}"
    if convention == "published" and height != width:
        raise UserError(f"the published ray convention is defined for square maps, not for {height} x {width} (height "
                        "x width); use rays=pinhole")
