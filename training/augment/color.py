"""Colour augmentations: affine maps of RGB values in -1 .. 1, multiplied into one matrix per image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from training.augment.transforms import Draw, DrawSource, Transform, affine, change_some, draw_matrices, scaling, shift

_AXIS = math.sqrt(1 / 3)                                # of grey: R = G = B


def _identity() -> Tensor:
    """[3, 3]."""
    return torch.eye(3, dtype=torch.float32, device="cpu")


def _grey() -> Tensor:
    """[3, 3]: projects onto the axis of grey."""
    return torch.full([3, 3], _AXIS ** 2, dtype=torch.float32, device="cpu")


def _brightness(draw: Draw, pipe: Any) -> Tensor:
    return shift((draw.normal() * pipe.brightness_std)[:, None].expand(-1, 3))


def _contrast(draw: Draw, pipe: Any) -> Tensor:
    return scaling(torch.exp2(draw.normal() * pipe.contrast_std)[:, None].expand(-1, 3))


def _luma_flip(draw: Draw, pipe: Any) -> Tensor:
    """Reflects at the plane of brightness 0."""
    flips = (draw.uniform() * 2).floor()
    return affine(_identity() - 2 * flips[:, None, None] * _grey())


def _hue(draw: Draw, pipe: Any) -> Tensor:
    """Turns around the axis of grey (Rodrigues' formula)."""
    angle_rad = ((draw.uniform() * 2 - 1) * math.pi * pipe.hue_max)[:, None, None]
    across = torch.tensor([[0.0, -_AXIS, _AXIS], [_AXIS, 0.0, -_AXIS], [-_AXIS, _AXIS, 0.0]],
                          dtype=torch.float32, device="cpu")                            # across @ x is axis x x
    return affine(_grey() + angle_rad.cos() * (_identity() - _grey()) + angle_rad.sin() * across)


def _saturation(draw: Draw, pipe: Any) -> Tensor:
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


def draw_map(pipe: Any, source: DrawSource, strength: float, batch: int, channels: int) -> Tensor:
    """[batch, C, C + 1] float32 on the CPU: linear part and offset of the product of all colour transforms.

    Raises ValueError if a colour transform is on and images have neither 1 nor 3 channels.
    """
    table = OF_ALL_IMAGES + (OF_COLOR_IMAGES if channels > 1 else ())
    product = torch.eye(4, dtype=torch.float32, device="cpu").repeat(batch, 1, 1)
    for matrix in draw_matrices(table, pipe, source, strength, batch):
        if channels not in (1, 3):
            raise ValueError(f"colour augmentation of images with {channels} channels; expected 1 (grey) or 3 (RGB)")
        product = matrix @ product
    if channels == 1:                                   # of R = G = B = the image, the mean of the result
        gain, offset = product[:, :3, :3].sum(dim=(1, 2)) / 3, product[:, :3, 3].mean(dim=1)
        return torch.stack([gain, offset], dim=1).unsqueeze(1)
    return product[:, :3]


def recolor(images: Tensor, colors: Tensor) -> Tensor:
    """images: [N, C, H, W]; colors: [N, C, C + 1] on the CPU. Leaves images whose map is the identity as they are."""
    channels = images.shape[1]
    if colors.shape[1] != channels:                     # neither grey nor RGB, and no colour transform
        return images
    changes = (colors != torch.eye(channels, channels + 1, dtype=torch.float32, device="cpu")).any(dim=2).any(dim=1)
    return change_some(images, changes, _recolor, colors)


def _recolor(images: Tensor, colors: Tensor) -> Tensor:
    colors = colors.to(images.device, images.dtype, non_blocking=True)
    pixels = torch.baddbmm(colors[:, :, -1:], colors[:, :, :-1], images.flatten(2))                 # [N, C, H W]
    return pixels.unflatten(2, images.shape[2:])
