"""Leaky ReLU at a higher sampling rate, between two filters: alias-free (Karras et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_utils.ops import backends
from torch_utils.ops.filtered_lrelu import operator, plain, reference
from torch_utils.ops.filtered_lrelu.reference import Settings, sizes
from torch_utils.ops.upfirdn2d.reference import edges, filter_size

__all__ = ["filtered_lrelu"]

backends.declare("filtered_lrelu", Path(__file__).parent, cuda="filtered_lrelu.cu", cpu="filtered_lrelu_cpu.cpp")
_PATHS = dict(reference=reference, operator=operator, plain=plain)


def filtered_lrelu(
    x:              Tensor,                                 # [N, C, H, W], any floating dtype.
    fu:             Tensor | None       = None,             # Upsampling filter from upfirdn2d.setup_filter(). None: identity.
    fd:             Tensor | None       = None,             # Downsampling filter, likewise.
    b:              Tensor | None       = None,             # [C], dtype of x. None: no bias.
    up:             int                 = 1,                # Factor of both axes.
    down:           int                 = 1,                # Factor of both axes.
    padding:        int | Sequence[int] = 0,                # Zeros around the upsampled image: all, (x, y) or (left, right, top, bottom). Negative: crops.
    gain:           float               = np.sqrt(2),       # Factor after the leaky ReLU.
    slope:          float               = 0.2,              # Of the negative side.
    clamp:          float | None        = None,             # Largest magnitude after the gain. None: no clamping.
    flip_filter:    bool                = False,            # False: convolution. True: correlation. Of both filters.
    impl:           str                 = "cuda",           # "cuda": the fastest path for x's device; "ref": the definition.
) -> Tensor:                                                # [N, C, H', W'], dtype of x.
    """Adds b; upsamples by `up` with the filter fu, keeping the brightness; clamp(gain * lrelu); downsamples with fd.

    Both filters see only whole neighbourhoods. At the higher rate, h = H * up + top + bottom - (taps of fu - 1) rows
    remain. Of these come H' = floor((h - taps of fd) / down) + 1, likewise W'. Differentiable twice in x and b; the
    filters are constants.
    """
    assert isinstance(x, Tensor) and x.ndim == 4, f"x of shape {list(x.shape)}, expected [N, C, H, W]"
    assert isinstance(up, int) and up >= 1, f"up {up!r}, expected a whole number from 1 on"
    assert isinstance(down, int) and down >= 1, f"down {down!r}, expected a whole number from 1 on"
    assert clamp is None or clamp >= 0, f"clamp {clamp}, expected None or a number from 0 on"
    x, b = backends.in_one_dtype(x, b)
    if b is not None:
        assert b.shape == (x.shape[1],), f"b has shape {list(b.shape)}, expected [{x.shape[1]}] for x {list(x.shape)}"
        assert b.dtype == x.dtype, f"b is {b.dtype}, x is {x.dtype}"
    for name, f in (("fu", fu), ("fd", fd)):
        assert f is None or (f.dtype == torch.float32 and not f.requires_grad), \
            f"{name} of {f.dtype}, requires_grad={f.requires_grad}; expected a constant of float32"
    settings = Settings(up, down, edges(padding), float(gain), float(slope), -1.0 if clamp is None else float(clamp),
                        flip_filter)
    assert min(sizes(x, fu, fd, settings).result) >= 1, \
        f"x {list(x.shape)} with up {up} and padding {settings.padding} is smaller than the filters need: " \
        f"{filter_size(fu)} and {filter_size(fd)} taps (across, down)"

    path = backends.choose("filtered_lrelu", x, lambda: operator.takes(x, fu, fd, settings), impl,
                           always=x.device.type in operator.WITHOUT_NATIVE)
    return _PATHS[path].filtered_lrelu(x, fu, fd, b, settings)
