"""`modulate` and the sums of `demodulation` by their definition. GPUs compute it, and CPUs without a compiler."""

from __future__ import annotations

import torch
from torch import Tensor


def modulate(x: Tensor, styles: Tensor, appended: Tensor | None) -> Tensor:
    """cat([x, appended], 1) * styles."""
    if appended is not None:
        x = torch.cat([x, appended.expand(x.shape[0], -1, -1, -1)], dim=1)      # [N, C + E, H, W]
    return x * styles[:, :, None, None]


def energies(kernels: Tensor, squares: Tensor) -> Tensor:
    """squares [N, K] times the squares of kernels [O, K]: [N, O]."""
    return squares @ kernels.square().t()
