"""`upfirdn2d` by its definition: insert zeros, pad or crop, convolve, keep every n-th sample."""

from __future__ import annotations

import torch
from torch.nn import functional

from torch_utils.ops.upfirdn2d.plain import conv2d_per_channel


def upfirdn2d(x: torch.Tensor, f: torch.Tensor | None, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int],
              flip_filter: bool, gain: float) -> torch.Tensor:
    """x [N, C, H, W], f [fh, fw] or [n] or None; factors as (x, y), padding as (left, right, top, bottom)."""
    N, C, H, W = x.shape
    f = x.new_ones([1, 1]) if f is None else f.to(torch.promote_types(x.dtype, torch.float32))
    f = torch.outer(f, f) if f.ndim == 1 else f
    if not flip_filter:
        f = f.flip([0, 1])                                      # conv2d correlates, a filter convolves

    stuffed = x.new_zeros([N, C, H, up[1], W, up[0]])
    stuffed[:, :, :, 0, :, 0] = x
    stuffed = stuffed.reshape(N, C, H * up[1], W * up[0])
    padded = functional.pad(stuffed, padding)
    kernel = (f * gain).to(x.dtype).expand(C, 1, *f.shape)      # [C, 1, fh, fw]
    filtered = conv2d_per_channel(padded, kernel)
    return filtered[:, :, ::down[1], ::down[0]]
