"""`filtered_lrelu` by its definition: the references of its four parts, one after the other."""

from __future__ import annotations

import torch

from torch_utils.ops.bias_act import reference as bias_act
from torch_utils.ops.upfirdn2d import reference as upfirdn2d


def filtered_lrelu(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, up: int, down: int,
                   padding: tuple[int, int, int, int], gain: float, slope: float, clamp: float | None, flip_filter: bool) -> torch.Tensor:
    """x [N, C, H, W]; padding as (left, right, top, bottom), counted at the upsampled rate."""
    x = bias_act.bias_act(x, b, 1, "linear", 0.0, 1.0, None)
    x = upfirdn2d.upfirdn2d(x, fu, (up, up), (1, 1), padding, flip_filter, float(up ** 2))      # up - 1 of up samples are zeros, on both axes
    x = bias_act.bias_act(x, None, 1, "lrelu", slope, gain, clamp)
    return upfirdn2d.upfirdn2d(x, fd, (1, 1), (down, down), (0, 0, 0, 0), flip_filter, 1.0)
