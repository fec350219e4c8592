"""Convolution with resampling before or after it, in the cheapest order that gives the same result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils.ops import backends, conv2d_gradfix, upfirdn2d
from torch_utils.ops.conv2d_resample import cpu
from torch_utils.ops.upfirdn2d.reference import edges, filter_size

backends.declare("up_conv", Path(__file__).parent, cpu="up_conv_cpu.cpp")


def conv2d_resample(
    x:              Tensor,                                 # [N, I, H, W]
    w:              Tensor,                                 # [O, I / groups, kh, kw], dtype of x.
    f:              Tensor | None       = None,             # Low-pass filter of both resamplings, from upfirdn2d.setup_filter(). None: identity.
    up:             int                 = 1,
    down:           int                 = 1,
    padding:        int | Sequence[int] = 0,                # In pixels of the upsampled image: all, (x, y) or (left, right, top, bottom).
    groups:         int                 = 1,
    flip_weight:    bool                = True,             # True: correlation, as torch.nn.functional.conv2d. False: convolution.
    flip_filter:    bool                = False,            # As in upfirdn2d.
) -> Tensor:                                                # [N, O, H', W']
    """downsample(conv(upsample(x, f), w), f). All is linear: any order will do in which the filter meets its rate.

    With `padding` 0 the convolution takes a border of kw - 1 pixels, as conv2d does; the filter's own support is made
    up for. On CPUs, results in single precision are channels_last, in which convolutions and filters are much faster.
    """
    assert x.ndim == 4 and w.ndim == 4, f"x {list(x.shape)}, w {list(w.shape)}, expected four dimensions each"
    x, w = backends.in_one_dtype(x, w)
    assert x.dtype == w.dtype, f"x is {x.dtype}, w is {w.dtype}"
    assert isinstance(up, int) and up >= 1 and isinstance(down, int) and down >= 1, \
        f"up {up!r}, down {down!r}, expected whole numbers from 1 on"
    if x.dtype == torch.float32 and prefers_channels_last(x.device):
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
    if up > 1:                                              # the kernel meets only samples that exist; then the filter
        pad = (left - (kw - 1), right - (kw - up), top - (kh - 1), bottom - (kh - up))
        if down == 1 and not flip_filter and cpu.takes(x, w, f, up, groups, pad):
            return cpu.up_conv(x, w.flip([2, 3]) if flip_weight else w, f, pad, gain=up ** 2)
        x = _transposed(x, w, up, groups, flip_weight)
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


def prefers_channels_last(device: torch.device) -> bool:
    """Are convolutions faster with channels innermost? On CPUs they are, but torch.func's vmap lacks the format."""
    return device.type == "cpu" and backends.available()


def _convolve(x: Tensor, w: Tensor, groups: int, flip_weight: bool, stride: int = 1,
              padding: tuple[int, int] = (0, 0)) -> Tensor:
    w = w if flip_weight or w.shape[2:] == (1, 1) else w.flip([2, 3])
    return conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding, groups=groups)


def _transposed(x: Tensor, w: Tensor, up: int, groups: int, flip_weight: bool) -> Tensor:
    """Kernels laid down at every `up`-th pixel: [N, O, (H - 1) * up + kh, (W - 1) * up + kw]."""
    w = w.flip([2, 3]) if flip_weight else w                # laying a kernel down is a convolution
    O, I, kh, kw = w.shape
    w = w.reshape(groups, O // groups, I, kh, kw).transpose(1, 2).reshape(groups * I, O // groups, kh, kw)
    return conv2d_gradfix.conv_transpose2d(x, w, stride=up, groups=groups)
