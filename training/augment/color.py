"""Colour augmentations: affine maps of RGB, multiplied into one matrix per image. Values are those of the image, -1 .. 1."""

from __future__ import annotations

import math
from typing import Any

import torch

from training.augment.draws import Draw, DrawSource
from training.augment.transforms import Transform, affine, change_some, draw_matrices, scaling, shift

_AXIS = math.sqrt(1 / 3)                                # of grey: R = G = B


def _identity() -> torch.Tensor:
    """[3, 3]."""
    return torch.eye(3, dtype=torch.float32, device="cpu")


def _grey() -> torch.Tensor:
    """[3, 3]: projects onto the axis of grey."""
    return torch.full([3, 3], _AXIS ** 2, dtype=torch.float32, device="cpu")


def _brightness(draw: Draw, pipe: Any) -> torch.Tensor:
    return shift((draw.normal() * pipe.brightness_std)[:, None].expand(-1, 3))


def _contrast(draw: Draw, pipe: Any) -> torch.Tensor:
    return scaling(torch.exp2(draw.normal() * pipe.contrast_std)[:, None].expand(-1, 3))


def _luma_flip(draw: Draw, pipe: Any) -> torch.Tensor:
    """Reflects at the plane of equal brightness through black and white's middle."""
    flips = (draw.uniform() * 2).floor()
    return affine(_identity() - 2 * flips[:, None, None] * _grey())


def _hue(draw: Draw, pipe: Any) -> torch.Tensor:
    """Turns around the axis of grey (Rodrigues' formula)."""
    angle_rad = ((draw.uniform() * 2 - 1) * math.pi * pipe.hue_max)[:, None, None]
    across = torch.tensor([[0.0, -_AXIS, _AXIS], [_AXIS, 0.0, -_AXIS], [-_AXIS, _AXIS, 0.0]],            # across @ x = axis x x
                          dtype=torch.float32, device="cpu")
    return affine(_grey() + angle_rad.cos() * (_identity() - _grey()) + angle_rad.sin() * across)


def _saturation(draw: Draw, pipe: Any) -> torch.Tensor:
    factor = torch.exp2(draw.normal() * pipe.saturation_std)[:, None, None]
    return affine(_grey() + factor * (_identity() - _grey()))


OF_ALL_IMAGES = (
    Transform("brightness", "brightness",   _brightness),
    Transform("contrast",   "contrast",     _contrast),
    Transform("lumaflip",   "lumaflip",     _luma_flip),
)
OF_COLOR_IMAGES = (
    Transform("hue",        "hue",          _hue),
    Transform("saturation", "saturation",   _saturation),
)


def draw_map(pipe: Any, source: DrawSource, strength: float, batch: int, channels: int) -> torch.Tensor:
    """[batch, C, C + 1] float32 on the CPU: linear part and offset of the product of all colour transforms.

    Raises ValueError for other than 1 or 3 channels where a colour transform is switched on.
    """
    table = OF_ALL_IMAGES + (OF_COLOR_IMAGES if channels > 1 else ())
    product = torch.eye(4, dtype=torch.float32, device="cpu").repeat(batch, 1, 1)
    for matrix in draw_matrices(table, pipe, source, strength, batch):
        if channels not in (1, 3):
            raise ValueError(f"colour augmentation of images with {channels} channels; expected 1 (grey) or 3 (RGB)")
        product = matrix @ product
    if channels == 1:                                   # the image as R = G = B, and the mean of what comes out
        gain, offset = product[:, :3, :3].sum(dim=(1, 2)) / 3, product[:, :3, 3].mean(dim=1)
        return torch.stack([gain, offset], dim=1).unsqueeze(1)
    return product[:, :3]


def recolor(images: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """images: [N, C, H, W]; colors: [N, C, C + 1] on the CPU. Images whose map is the identity are returned as they are."""
    channels = images.shape[1]
    if colors.shape[1] != channels:                     # neither grey nor RGB, and no colour transform
        return images
    changes = (colors != torch.eye(channels, channels + 1, dtype=torch.float32, device="cpu")).any(dim=2).any(dim=1)
    return change_some(images, changes, _recolor, colors)


def _recolor(images: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    colors = colors.to(images.device, images.dtype, non_blocking=True)
    pixels = torch.baddbmm(colors[:, :, -1:], colors[:, :, :-1], images.flatten(2))                 # [N, C, H W]
    return pixels.unflatten(2, images.shape[2:])
