"""Bilinear sampling of images at given points, with second gradients."""

from __future__ import annotations

import torch
from torch.nn import functional

enabled = True      # Kept for scripts that set it. Both values give the same result.


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Being written."""
    return functional.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
