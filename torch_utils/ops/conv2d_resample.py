"""Convolution between an optional upsampling and an optional downsampling, in the cheapest order that gives the same result."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_utils.ops import conv2d_gradfix, upfirdn2d
from torch_utils.ops.upfirdn2d.arguments import edges, filter_size


def conv2d_resample(
    x:              torch.Tensor,                           # [N, I, H, W]
    w:              torch.Tensor,                           # [O, I / groups, kh, kw], dtype of x.
    f:              torch.Tensor | None = None,             # Low-pass filter of both resamplings, from upfirdn2d.setup_filter(). None: identity.
    up:             int                 = 1,
    down:           int                 = 1,
    padding:        int | Sequence[int] = 0,                # In pixels of the upsampled image: all, (x, y) or (left, right, top, bottom).
    groups:         int                 = 1,
    flip_weight:    bool                = True,             # True: correlation, as torch.nn.functional.conv2d. False: convolution.
    flip_filter:    bool                = False,            # As in upfirdn2d.
) -> torch.Tensor:                                          # [N, O, H', W']
    """downsample(conv(upsample(x, f), w), f)."""
    fw, fh = filter_size(f)
    left, right, top, bottom = edges(padding)
    if up > 1:
        left, right = left + (fw + up - 1) // 2, right + (fw - up) // 2
        top, bottom = top + (fh + up - 1) // 2, bottom + (fh - up) // 2
    if down > 1:
        left, right = left + (fw - down + 1) // 2, right + (fw - down) // 2
        top, bottom = top + (fh - down + 1) // 2, bottom + (fh - down) // 2
    w = w if flip_weight else w.flip([2, 3])
    x = upfirdn2d.upfirdn2d(x, f if up > 1 else None, up=up, padding=(left, right, top, bottom), gain=up ** 2, flip_filter=flip_filter)
    x = conv2d_gradfix.conv2d(x, w, groups=groups)
    return x if down == 1 else upfirdn2d.upfirdn2d(x, f, down=down, flip_filter=flip_filter)
