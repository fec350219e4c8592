"""`upfirdn2d` by its definition, and how its arguments may be written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Settings(NamedTuple):
    """The numbers of a call, in the order of the registered operator's arguments."""

    up:             tuple[int, int]             # (x, y)
    down:           tuple[int, int]             # (x, y)
    padding:        tuple[int, int, int, int]   # (left, right, top, bottom). Negative: crops.
    flip_filter:    bool                        # False: convolution. True: correlation.
    gain:           float


def upfirdn2d(x: Tensor, f: Tensor | None, settings: Settings) -> Tensor:
    """Inserts zeros, pads or crops, convolves, keeps every n-th sample. x [N, C, H, W]; f [fh, fw], [n] or None."""
    up, down, padding, flip_filter, gain = settings
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


def conv2d_per_channel(x: Tensor, kernel: Tensor, **settings: Any) -> Tensor:
    """conv2d with a kernel [C, 1, fh, fw] for each channel. On CPUs, float16 is computed in float32.

    With kernels in float16 that are 16 or more wide, oneDNN (torch 2.13) never returns on CPUs with AVX512-FP16.
    """
    if x.dtype == torch.float16 and x.device.type == "cpu":
        wide = functional.conv2d(x.to(torch.float32), kernel.to(torch.float32), groups=x.shape[1], **settings)
        return wide.to(x.dtype)
    return functional.conv2d(x, kernel, groups=x.shape[1], **settings)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments.

def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """A factor for both axes, or (x, y) -> (x, y)."""
    x, y = (value, value) if isinstance(value, int) else value
    assert isinstance(x, int) and isinstance(y, int) and x >= 1 and y >= 1, \
        f"{name} {value!r}, expected whole numbers from 1 on"
    return x, y


def edges(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """One number, (x, y) or (left, right, top, bottom) -> (left, right, top, bottom)."""
    if isinstance(padding, int):
        return padding, padding, padding, padding
    if len(padding) == 2:
        x, y = padding
        return x, x, y, y
    assert len(padding) == 4, f"padding {padding!r}, expected a number, (x, y) or (left, right, top, bottom)"
    left, right, top, bottom = padding
    return left, right, top, bottom


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter. None is a single tap; a vector [n] stands for its outer product with itself."""
    if f is None:
        return 1, 1
    assert f.ndim in (1, 2) and f.numel() > 0, f"filter of shape {list(f.shape)}, expected [n] or [height, width]"
    return f.shape[-1], f.shape[0]


def output_size(size: int, up: int, down: int, before: int, after: int, taps: int) -> int:
    """Samples along one axis that come out of `size` samples."""
    return (size * up + before + after - taps) // down + 1


def result_size(x: Tensor, f: Tensor | None, settings: Settings) -> tuple[int, int]:
    """(height, width) of the result for x [N, C, H, W]."""
    (fw, fh), (left, right, top, bottom) = filter_size(f), settings.padding
    return (output_size(x.shape[2], settings.up[1], settings.down[1], top, bottom, fh),
            output_size(x.shape[3], settings.up[0], settings.down[0], left, right, fw))
