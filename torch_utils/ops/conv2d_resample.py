"""Convolution between an optional upsampling and an optional downsampling, in the cheapest order that gives the same result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from torch_utils.ops import conv2d_gradfix, upfirdn2d
from torch_utils.ops.upfirdn2d.arguments import edges, filter_size

PHASES_FROM = 256       # channels from which four sub-pixel convolutions beat one transposed one (two cores, channels_last, no gradients)


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
    """downsample(conv(upsample(x, f), w), f), all linear, so the order is free as long as the filter meets the right rate.

    `padding` 0 loses a border of kw - 1 pixels to the convolution, as there; the filter's own support is made up for.
    On the CPU single-precision results are channels_last, where convolutions and filters are much faster than in the other format.
    """
    assert x.ndim == 4 and w.ndim == 4, f"x {list(x.shape)}, w {list(w.shape)}, expected four dimensions each"
    assert x.dtype == w.dtype, f"x is {x.dtype}, w is {w.dtype}"
    assert isinstance(up, int) and up >= 1 and isinstance(down, int) and down >= 1, f"up {up!r}, down {down!r}, expected whole numbers from 1 on"
    if x.device.type == "cpu" and x.dtype == torch.float32:
        x = x.contiguous(memory_format=torch.channels_last)
    kh, kw = w.shape[2:]
    fw, fh = filter_size(f)
    fir = dict(flip_filter=flip_filter)
    left, right, top, bottom = edges(padding)
    if up > 1:                                              # what keeps the filtered image where it was
        left, right = left + (fw + up - 1) // 2, right + (fw - up) // 2
        top, bottom = top + (fh + up - 1) // 2, bottom + (fh - up) // 2
    if down > 1:
        left, right = left + (fw - down + 1) // 2, right + (fw - down) // 2
        top, bottom = top + (fh - down + 1) // 2, bottom + (fh - down) // 2
    pad = (left, right, top, bottom)

    if up > 1 and kh == kw == 1 and down == 1:              # pointwise: at the lower rate
        x = _convolve(x, w, groups, flip_weight)
        return upfirdn2d.upfirdn2d(x, f, up=up, padding=pad, gain=up ** 2, **fir)
    if up > 1:                                              # the kernel meets only the samples that are there, the filter comes after
        x = _transposed(x, w, up, groups, flip_weight)
        pad = (left - (kw - 1), right - (kw - up), top - (kh - 1), bottom - (kh - up))
        x = upfirdn2d.upfirdn2d(x, f, padding=pad, gain=up ** 2, **fir)
        return x if down == 1 else upfirdn2d.upfirdn2d(x, f, down=down, **fir)
    if down > 1 and kh == kw == 1:
        x = upfirdn2d.upfirdn2d(x, f, down=down, padding=pad, **fir)
        return _convolve(x, w, groups, flip_weight)
    if down > 1:                                            # filter, then compute only the samples that stay
        x = upfirdn2d.upfirdn2d(x, f, padding=pad, **fir)
        return _convolve(x, w, groups, flip_weight, stride=down)
    if left != right or top != bottom or left < 0 or top < 0:
        return _convolve(functional.pad(x, pad), w, groups, flip_weight)
    return _convolve(x, w, groups, flip_weight, padding=(top, left))


def _convolve(x: torch.Tensor, w: torch.Tensor, groups: int, flip_weight: bool, stride: int = 1,
              padding: tuple[int, int] = (0, 0)) -> torch.Tensor:
    w = w if flip_weight or w.shape[2:] == (1, 1) else w.flip([2, 3])
    return conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding, groups=groups)


def _transposed(x: torch.Tensor, w: torch.Tensor, up: int, groups: int, flip_weight: bool) -> torch.Tensor:
    """Kernels laid down at every `up`-th pixel: [N, O, (H - 1) * up + kh, (W - 1) * up + kw]."""
    w = w.flip([2, 3]) if flip_weight else w                # laying a kernel down is a convolution
    recorded = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    if x.device.type == "cpu" and not recorded and up == 2 and min(w.shape[2:]) >= 2 and min(w.shape[:2]) >= PHASES_FROM:
        return _transposed_by_phases(x, w, groups)
    O, I, kh, kw = w.shape
    w = w.reshape(groups, O // groups, I, kh, kw).transpose(1, 2).reshape(groups * I, O // groups, kh, kw)
    return conv2d_gradfix.conv_transpose2d(x, w, stride=up, groups=groups)


def _transposed_by_phases(x: torch.Tensor, w: torch.Tensor, groups: int) -> torch.Tensor:
    """The same for up = 2 as one small convolution per output parity: row 2i + a meets the kernel's rows a, a + 2, ... only."""
    N, _, H, W = x.shape
    O, _, kh, kw = w.shape
    shape = [N, O, 2 * (H - 1) + kh, 2 * (W - 1) + kw]
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for a in range(2):
        for b in range(2):
            taps = w[:, :, a::2, b::2].flip([2, 3])
            y[:, :, a::2, b::2] = conv2d_gradfix.conv2d(x, taps, padding=(taps.shape[2] - 1, taps.shape[3] - 1), groups=groups)
    return y
