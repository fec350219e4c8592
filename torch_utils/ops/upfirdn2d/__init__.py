"""Upsample, filter and downsample images: FIR filters at changing sampling rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import backends
from torch_utils.ops.upfirdn2d import operator, plain, reference
from torch_utils.ops.upfirdn2d.reference import Settings, edges, filter_size, pair, result_size

__all__ = ["downsample2d", "filter2d", "setup_filter", "upfirdn2d", "upsample2d"]

backends.declare("upfirdn2d", Path(__file__).parent, cuda="upfirdn2d.cu", cpu="upfirdn2d_cpu.cpp")
_PATHS = dict(reference=reference, operator=operator, plain=plain)
SEPARABLE_FROM = 8      # taps from which two one-dimensional passes beat one two-dimensional filter


def setup_filter(
    f:              Any,                                        # Number, [n] or [height, width]: tensor, array or list. None: identity.
    device:         Any         = torch.device("cpu"),
    normalize:      bool        = True,                         # Scale to sum 1, so that constants pass unchanged?
    flip_filter:    bool        = False,                        # Reverse the taps?
    gain:           float       = 1,                            # Factor of the whole (two-dimensional) filter.
    separable:      bool | None = None,                         # Keep [n] one-dimensional? None: from 8 taps on.
) -> Tensor:                                                    # [n] (separable) or [height, width], float32.
    """The filter in the form that the functions here take."""
    f = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device=device)
    assert f.ndim <= 2 and f.numel() > 0, \
        f"filter of shape {list(f.shape)}, expected a number, [n] or [height, width]"
    f = f.reshape(1) if f.ndim == 0 else f
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= SEPARABLE_FROM
    assert f.ndim == 1 or not separable, \
        f"a filter of shape {list(f.shape)} cannot be kept separable; give its one-dimensional factor"
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    return f * gain ** (f.ndim / 2)                             # each of two passes carries the root of the gain


def upfirdn2d(
    x:              Tensor,                                     # [N, C, H, W], any floating dtype.
    f:              Tensor | None,                              # From setup_filter(). None: identity.
    up:             int | Sequence[int] = 1,                    # Factor, or (x, y).
    down:           int | Sequence[int] = 1,                    # Factor, or (x, y).
    padding:        int | Sequence[int] = 0,                    # Zeros around the upsampled image: all, (x, y) or (left, right, top, bottom).
    flip_filter:    bool                = False,                # False: convolution. True: correlation.
    gain:           float               = 1,                    # Factor of the result.
    impl:           str                 = "cuda",               # "cuda": the fastest path for x's device; "ref": the definition.
) -> Tensor:                                                    # [N, C, H', W'], dtype of x.
    """Inserts up - 1 zeros after each sample, pads (negative: crops), filters, and keeps every `down`-th sample.

    The filter sees only whole neighbourhoods: H' = floor((H * up + top + bottom - fh) / down) + 1, likewise W'.
    Differentiable any number of times in x; the filter is a constant.
    """
    assert isinstance(x, Tensor) and x.ndim == 4, f"x of shape {list(x.shape)}, expected [N, C, H, W]"
    settings = Settings(pair(up, "up"), pair(down, "down"), edges(padding), flip_filter, float(gain))
    fw, fh = filter_size(f)
    if f is not None:
        assert f.dtype == torch.float32 and not f.requires_grad, \
            f"filter of {f.dtype}, requires_grad={f.requires_grad}; expected a constant of float32"
    assert min(result_size(x, f, settings)) >= 1, \
        f"x {list(x.shape)} with up {settings.up} and padding {settings.padding} is smaller than the {fh} x {fw} filter"
    path = backends.choose("upfirdn2d", x, lambda: operator.takes(x, f), impl, always=x.device.type == "cpu")
    return _PATHS[path].upfirdn2d(x, f, settings)


def filter2d(
    x:              Tensor,                                     # [N, C, H, W]
    f:              Tensor | None,
    padding:        int | Sequence[int] = 0,                    # On top of what keeps the size.
    flip_filter:    bool                = False,
    gain:           float               = 1,
    impl:           str                 = "cuda",
) -> Tensor:                                                    # [N, C, H, W] with padding 0.
    """Filters at the same size; beyond its edges the image counts as zero."""
    fw, fh = filter_size(f)
    left, right, top, bottom = edges(padding)
    padding = (left + fw // 2, right + (fw - 1) // 2, top + fh // 2, bottom + (fh - 1) // 2)
    return upfirdn2d(x, f, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x:              Tensor,                                     # [N, C, H, W]
    f:              Tensor | None,
    up:             int | Sequence[int] = 2,                    # Factor, or (x, y).
    padding:        int | Sequence[int] = 0,                    # On top of what aligns the result, in its pixels.
    flip_filter:    bool                = False,
    gain:           float               = 1,
    impl:           str                 = "cuda",
) -> Tensor:                                                    # [N, C, H * up, W * up] with padding 0.
    """Enlarges; a filter of sum 1 keeps the brightness. Beyond its edges the image counts as zero."""
    upx, upy = pair(up, "up")
    fw, fh = filter_size(f)
    left, right, top, bottom = edges(padding)
    padding = (left + (fw + upx - 1) // 2, right + (fw - upx) // 2, top + (fh + upy - 1) // 2, bottom + (fh - upy) // 2)
    return upfirdn2d(x, f, up=(upx, upy), padding=padding, flip_filter=flip_filter, gain=gain * upx * upy, impl=impl)


def downsample2d(
    x:              Tensor,                                     # [N, C, H, W]
    f:              Tensor | None,
    down:           int | Sequence[int] = 2,                    # Factor, or (x, y).
    padding:        int | Sequence[int] = 0,                    # On top of what aligns the result, in the pixels of x.
    flip_filter:    bool                = False,
    gain:           float               = 1,
    impl:           str                 = "cuda",
) -> Tensor:                                                    # [N, C, H / down, W / down] with padding 0.
    """Reduces; the filter runs before the samples are dropped. Beyond its edges the image counts as zero."""
    downx, downy = pair(down, "down")
    fw, fh = filter_size(f)
    left, right, top, bottom = edges(padding)
    padding = (left + (fw - downx + 1) // 2, right + (fw - downx) // 2,
               top + (fh - downy + 1) // 2, bottom + (fh - downy) // 2)
    return upfirdn2d(x, f, down=(downx, downy), padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)


# ---------------------------------------------------------------------------------------------------------------------
# The names that StyleGAN3's own networks and users' layers call for arguments.

_parse_padding, _get_filter_size = edges, filter_size


def _parse_scaling(scaling: int | Sequence[int]) -> tuple[int, int]:
    return pair(scaling, "scaling")
