"""Amplifies or dampens octaves of an image's spatial frequency."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import conv2d

from training.augment.draws import Draw, DrawSource
from training.augment.padding import pad_reflected
from training.augment.transforms import change_some

_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)              # share of the bands in natural images, whose spectrum falls as 1/f; the lowest first


def draw_gains(pipe: Any, source: DrawSource, strength: float, batch: int) -> torch.Tensor:
    """[batch, bands] float32 on the CPU: the factor of each band. One band after the other is changed, each time at equal expected power."""
    power = torch.tensor(_POWER, dtype=torch.float32, device="cpu")
    gains = torch.ones([batch, len(_POWER)], dtype=torch.float32, device="cpu")
    for band, multiplier in enumerate(pipe.imgfilter_bands):
        if pipe.imgfilter * multiplier > 0:
            draw = Draw(source, f"imgfilter{band}", batch)
            factor = torch.exp2(draw.normal() * pipe.imgfilter_std)
            change = torch.ones_like(gains)
            change[:, band] = torch.where(draw.applies(pipe.imgfilter * multiplier * strength), factor, 1.0)
            gains = gains * change / (power * change.square()).sum(dim=1, keepdim=True).sqrt()
    return gains


def filter_bands(images: torch.Tensor, gains: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """images: [N, C, H, W]; gains: [N, bands] on the CPU; bank: [bands, taps]. Images with all gains 1 are returned as they are."""
    return change_some(images, (gains != 1).any(dim=1), lambda some, factors: _filter(some, factors, bank), gains)


def _filter(images: torch.Tensor, gains: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = images.shape
    taps = (gains.to(bank.device, non_blocking=True) @ bank).to(images.dtype)                       # [N, T]
    taps = taps.repeat_interleave(channels, dim=0)                                                  # [N C, T]
    reach = taps.shape[1] // 2
    x = pad_reflected(images, reach, reach, reach, reach).reshape(1, batch * channels, height + 2 * reach, width + 2 * reach)
    x = conv2d(x, taps[:, None, None, :], groups=batch * channels)
    x = conv2d(x, taps[:, None, :, None], groups=batch * channels)
    return x.reshape(batch, channels, height, width)
