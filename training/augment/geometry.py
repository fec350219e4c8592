"""Geometric augmentations, from shifts by whole pixels to any affine map, all done in one resampling.

A matrix here is an inverse: it takes a point of the augmented image to the point of the given image that is shown
there. Points are (x, y, 1) in pixels from the image's centre, x to the right, y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import grid_sample_gradfix, upfirdn2d
from training.augment.transforms import (
    Draw,
    DrawSource,
    Transform,
    affine,
    change_some,
    draw_matrices,
    pad_reflected,
    scaling,
    shift,
)

# ---------------------------------------------------------------------------------------------------------------------
# What is drawn. `size` is (width, height) in pixels.

def _mirror(draw: Draw, pipe: Any, size: Tensor) -> Tensor:
    sign = 1 - 2 * (draw.uniform() * 2).floor()
    return scaling(torch.stack([sign, torch.ones_like(sign)], dim=1))


def _quarter_turns(draw: Draw, pipe: Any, size: Tensor) -> Tensor:
    return _rotation(math.pi / 2 * (draw.uniform() * 4).floor())


def _whole_pixels(draw: Draw, pipe: Any, size: Tensor) -> Tensor:
    return shift(-((draw.uniform(2) * 2 - 1) * pipe.xint_max * size).round())


def _zoom(draw: Draw, pipe: Any, size: Tensor) -> Tensor:
    return scaling(torch.exp2(-draw.normal() * pipe.scale_std)[:, None].expand(-1, 2))


def _rotate(draw: Draw, pipe: Any, size: Tensor) -> Tensor:
    return _rotation((draw.uniform() * 2 - 1) * math.pi * pipe.rotate_max)


def _stretch(draw: Draw, pipe: Any, size: Tensor) -> Tensor:
    exponent = draw.normal() * pipe.aniso_std
    return scaling(torch.exp2(torch.stack([-exponent, exponent], dim=1)))


def _subpixel(draw: Draw, pipe: Any, size: Tensor) -> Tensor:
    return shift(-draw.normal(2) * pipe.xfrac_std * size)


def _either_of_two(probability: float) -> float:
    """The probability of each of two transforms such that at least one is applied with the given probability."""
    return 1 - math.sqrt(1 - min(probability, 1.0))


# In the order in which they are applied to the image. A stretch between two rotations points in any direction.
GEOMETRY = (
    Transform("xflip",          "xflip",    _mirror),
    Transform("rotate90",       "rotate90", _quarter_turns),
    Transform("xint",           "xint",     _whole_pixels),
    Transform("scale",          "scale",    _zoom),
    Transform("rotate_before",  "rotate",   _rotate, _either_of_two),
    Transform("aniso",          "aniso",    _stretch),
    Transform("rotate_after",   "rotate",   _rotate, _either_of_two),
    Transform("xfrac",          "xfrac",    _subpixel),
)


def draw_inverse(pipe: Any, source: DrawSource, strength: float, batch: int, width: int, height: int) -> Tensor:
    """[batch, 3, 3] float32 on the CPU: the product of all geometric transforms."""
    inverse = torch.eye(3, dtype=torch.float32, device="cpu").repeat(batch, 1, 1)
    for matrix in draw_matrices(GEOMETRY, pipe, source, strength, batch, _pair(width, height)[0]):
        inverse = inverse @ matrix
    return inverse


# ---------------------------------------------------------------------------------------------------------------------
# How it is carried out.

def resample(images: Tensor, inverse: Tensor, taps: Tensor) -> Tensor:
    """The images seen through the maps.

    images: [N, C, H, W]; inverse: [N, 3, 3] on the CPU; taps: [T], low-pass filter of an orthogonal wavelet. Leaves
    samples whose map is the identity as they are. Each sample has its own margin, so it does not depend on the others.
    """
    moved = (inverse != torch.eye(3, dtype=torch.float32, device="cpu")).any(dim=2).any(dim=1)
    return change_some(images, moved, lambda some, maps: _resample(some, maps, taps), inverse)


def _resample(images: Tensor, inverse: Tensor, taps: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    reach = len(taps) // 4                                                  # of the filter at twice the rate [pixels]
    margins = _margins(inverse, width, height, reach)                       # [N, 4]
    left, top, right, bottom = margins.amax(dim=0).tolist()
    canvas = pad_reflected(images, left, right, top, bottom)
    canvas = canvas * _own_part(margins, width, height).to(canvas.device, canvas.dtype, non_blocking=True)
    canvas = _as_one(upfirdn2d.upsample2d, canvas, taps, up=2)      # [N, C, 2 (H + top + bottom), 2 (W + left + right)]

    # Points are in samples of the doubled images, from their centres. The filter aligns sample 2 i with pixel i, half a
    # sample before its middle.
    from_sample = scaling(_pair(0.5, 0.5)) @ shift(_pair(0.5, 0.5))
    to_sample = shift(_pair(-0.5, -0.5)) @ scaling(_pair(2, 2)) @ shift(_pair((left - right) / 2, (top - bottom) / 2))
    # affine_grid's points run from -1 to 1, in its output as in its input.
    made = [2 * (height + 2 * reach), 2 * (width + 2 * reach)]
    from_unit = scaling(_pair(made[1] / 2, made[0] / 2))
    to_unit = scaling(_pair(2 / canvas.shape[3], 2 / canvas.shape[2]))
    theta = (to_unit @ to_sample @ inverse @ from_sample @ from_unit)[:, :2]                    # [N, 2, 3]

    theta = theta.to(images.device, images.dtype, non_blocking=True)
    grid = torch.nn.functional.affine_grid(theta, [batch, channels, *made], align_corners=False)
    resampled = grid_sample_gradfix.grid_sample(canvas, grid)               # [N, C, 2 (H + 2 reach), 2 (W + 2 reach)]
    return _as_one(upfirdn2d.downsample2d, resampled, taps, down=2, padding=-2 * reach, flip_filter=True)


def _margins(inverse: Tensor, width: int, height: int, reach: int) -> Tensor:
    """How many pixels each sample reads beyond its image, at left, top, right and bottom: [N, 4] int64, less than the
    image's size.
    """
    half = _pair((width - 1) / 2, (height - 1) / 2)[0]
    corners = torch.cartesian_prod(*torch.tensor([[-1.0, 1.0]] * 2, dtype=torch.float32, device="cpu")) * half
    points = corners @ inverse[:, :2, :2].mT + inverse[:, None, :2, 2]                      # [N, 4, 2]
    extent = torch.cat([-points.amin(dim=1), points.amax(dim=1)], dim=1)                    # [N, 4]
    most = _pair(width - 1, height - 1)[0].repeat(2)
    return (extent - half.repeat(2) + 2 * reach).clamp(min=0).minimum(most).ceil().long()


def _own_part(margins: Tensor, width: int, height: int) -> Tensor:
    """The pixels of the batch's canvas within each sample's own margins: [N, 1, H', W'] bool, on the CPU."""
    left, top, right, bottom = margins.amax(dim=0)
    x = torch.arange(-int(left), width + int(right), dtype=torch.int64, device="cpu")
    y = torch.arange(-int(top), height + int(bottom), dtype=torch.int64, device="cpu")
    in_x = (x >= -margins[:, :1]) & (x < width + margins[:, 2:3])           # [N, W']
    in_y = (y >= -margins[:, 1:2]) & (y < height + margins[:, 3:])          # [N, H']
    return (in_y[:, :, None] & in_x[:, None, :]).unsqueeze(1)


def _as_one(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """function(x) with all images as channels of one image, which makes PyTorch's convolutions on CPUs several times as
    fast.
    """
    return function(x.flatten(0, 1)[None], *args, **kwargs)[0].unflatten(0, x.shape[:2])


def _pair(x: float, y: float) -> Tensor:
    """[1, 2], float32 on the CPU."""
    return torch.tensor([[x, y]], dtype=torch.float32, device="cpu")


def _rotation(angle_rad: Tensor) -> Tensor:
    """angle_rad: [N], from x to y -> [N, 3, 3]."""
    cos, sin = angle_rad.cos(), angle_rad.sin()
    return affine(torch.stack([cos, -sin, sin, cos], dim=1).unflatten(1, (2, 2)))
