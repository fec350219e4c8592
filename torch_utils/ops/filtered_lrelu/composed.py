"""`filtered_lrelu` of the operators `upfirdn2d` and `bias_act`, each on its own fastest path: for what no fused path takes."""

from __future__ import annotations

import torch
from torch.nn import functional

from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import upfirdn2d


def filtered_lrelu(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, up: int, down: int,
                   padding: tuple[int, int, int, int], gain: float, slope: float, clamp: float | None, flip_filter: bool) -> torch.Tensor:
    """Same contract as the reference."""
    x = bias_act(x, b)
    if fu is None and up == 1:
        x = functional.pad(x, padding) if any(padding) else x
    else:
        x = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up ** 2)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return x if fd is None and down == 1 else upfirdn2d(x, fd, down=down, flip_filter=flip_filter)
