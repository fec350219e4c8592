"""Mirrored borders of any width."""

from __future__ import annotations

import torch


def pad_reflected(images: torch.Tensor, left: int, right: int, top: int, bottom: int) -> torch.Tensor:
    """images: [N, C, H, W] -> [N, C, H + top + bottom, W + left + right], mirrored at the outermost pixels, several times where the border is
    wider than the image.
    """
    assert min(images.shape[2:]) >= 2, f"images of {list(images.shape)}, expected 2 x 2 pixels or more"
    wanted = [left, right, top, bottom]
    while any(wanted):
        height, width = images.shape[2:]
        step = [min(side, size - 1) for side, size in zip(wanted, (width, width, height, height))]
        images = torch.nn.functional.pad(images, step, mode="reflect")
        wanted = [side - done for side, done in zip(wanted, step)]
    return images
