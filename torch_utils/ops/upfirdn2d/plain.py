"""`upfirdn2d` on PyTorch's convolutions: fast on a CPU and differentiable to any order.

Downsampling is a strided convolution, which computes only the samples that stay. Upsampling is a strided transposed
convolution, which never multiplies an inserted zero. Slower on two AVX-512 cores, in both memory formats, at 64 to 512
channels: sums of shifted slices, two one-dimensional passes, four convolutions interleaved, pixel_shuffle.
All of these are faster in channels_last than in contiguous memory (benchmarks/bench_ops.py prints both).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils.ops.upfirdn2d.reference import Settings, conv2d_per_channel


def upfirdn2d(x: Tensor, f: Tensor | None, settings: Settings) -> Tensor:
    """Same contract as the reference. Never returns x itself or a view of it."""
    up, down, padding, flip_filter, gain = settings
    left, right, top, bottom = padding
    if f is None:
        return _filter(x, torch.full([1, 1], gain, dtype=x.dtype, device=x.device), up, down, padding)
    f = f.to(torch.promote_types(x.dtype, torch.float32))
    f = f if flip_filter else f.flip(list(range(f.ndim)))
    if f.ndim == 2:
        return _filter(x, (f * gain).to(x.dtype), up, down, padding)
    root = math.sqrt(abs(gain))                                 # [n]: along x, then along y, with half of the gain each
    x = _filter(x, (f * root).to(x.dtype).view(1, -1), (up[0], 1), (down[0], 1), (left, right, 0, 0))
    column = (f * math.copysign(root, gain)).to(x.dtype).view(-1, 1)
    return _filter(x, column, (1, up[1]), (1, down[1]), (0, 0, top, bottom))


def _filter(x: Tensor, taps: Tensor, up: tuple[int, int], down: tuple[int, int],
            padding: tuple[int, int, int, int]) -> Tensor:
    """One pass with correlation taps [fh, fw]; factors as (x, y), padding as (left, right, top, bottom)."""
    channels = x.shape[1]
    if up != (1, 1):
        x = _upsample(x, taps.flip([0, 1]), up, padding)        # a transposed convolution convolves
        return x if down == (1, 1) else x[:, :, ::down[1], ::down[0]].contiguous(memory_format=_format_of(x))
    left, right, top, bottom = padding
    if left != right or top != bottom or left < 0 or top < 0:
        x = functional.pad(x, padding)
        left = top = 0
    kernel = taps.expand(channels, 1, *taps.shape).contiguous()                         # [C, 1, fh, fw]
    return conv2d_per_channel(x, kernel, stride=(down[1], down[0]), padding=(top, left))


def _upsample(x: Tensor, taps: Tensor, up: tuple[int, int], padding: tuple[int, int, int, int]) -> Tensor:
    """All samples at the higher rate, with convolution taps [fh, fw]."""
    channels = x.shape[1]
    left, right, top, bottom = padding
    fh, fw = taps.shape
    # The transposed convolution gives every sample that an input reaches. Of these the definition drops the first
    # fw - 1 - left; at the end it adds right + up - fw more (negative: drops).
    crop, extend = (fh - 1 - top, fw - 1 - left), (bottom + up[1] - fh, right + up[0] - fw)
    kernel = taps.expand(channels, 1, fh, fw).contiguous()
    stride, beyond = (up[1], up[0]), (crop[0] + extend[0], crop[1] + extend[1])
    if min(crop) >= 0 and 0 <= beyond[0] < up[1] and 0 <= beyond[1] < up[0]:
        return functional.conv_transpose2d(x, kernel, stride=stride, padding=crop, output_padding=beyond,
                                           groups=channels)
    x = functional.conv_transpose2d(x, kernel, stride=stride, groups=channels)
    return functional.pad(x, (-crop[1], extend[1], -crop[0], extend[0]))


def _format_of(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last
