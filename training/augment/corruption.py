"""What damages an image: noise, and a rectangle cut out."""

from __future__ import annotations

from typing import Any

import torch

from training.augment.draws import Draw, DrawSource


def add_noise(images: torch.Tensor, pipe: Any, source: DrawSource, strength: float) -> torch.Tensor:
    """images: [N, C, H, W]. Adds normal noise whose sigma is itself drawn for each image."""
    if pipe.noise == 0:
        return images
    draw = Draw(source, "noise", len(images))
    sigma = torch.where(draw.applies(pipe.noise * strength), draw.half_normal() * pipe.noise_std, 0.0)              # [N]
    if not sigma.any():
        return images
    return images + draw.image_noise(images) * sigma.to(images.device, images.dtype, non_blocking=True)[:, None, None, None]


def _pixel_centres(count: int) -> torch.Tensor:
    """[count], as parts of the image's side."""
    return (torch.arange(count, dtype=torch.float32, device="cpu") + 0.5) / count


def cut_out(images: torch.Tensor, pipe: Any, source: DrawSource, strength: float) -> torch.Tensor:
    """images: [N, C, H, W]. Sets a rectangle of `cutout_size` times the image's sides to zero; its centre is anywhere in the image."""
    if pipe.cutout == 0:
        return images
    batch, _, height, width = images.shape
    draw = Draw(source, "cutout", batch)
    side = draw.applies(pipe.cutout * strength).to(torch.float32) * pipe.cutout_size        # [N], as part of the image's side
    if not side.any():
        return images
    centre = draw.uniform(2)                                                                                        # [N, 2]: x, y
    outside_x = (_pixel_centres(width) - centre[:, :1]).abs() >= side[:, None] / 2          # [N, W]
    outside_y = (_pixel_centres(height) - centre[:, 1:]).abs() >= side[:, None] / 2         # [N, H]
    keeps = (outside_y[:, :, None] | outside_x[:, None, :]).unsqueeze(1)                                            # [N, 1, H, W]
    return images * keeps.to(images.device, images.dtype, non_blocking=True)
