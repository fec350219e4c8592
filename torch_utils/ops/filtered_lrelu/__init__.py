"""Leaky ReLU at a higher sampling rate, between two filters: the alias-free nonlinearity of StyleGAN3 (Karras et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from torch_utils import custom_ops
from torch_utils.ops import registry
from torch_utils.ops.filtered_lrelu import composed, native, operator, reference
from torch_utils.ops.upfirdn2d.arguments import edges, filter_size, output_size

__all__ = ["filtered_lrelu"]


def filtered_lrelu(
    x:              torch.Tensor,                           # [N, C, H, W], any floating dtype.
    fu:             torch.Tensor | None = None,             # Upsampling filter from upfirdn2d.setup_filter(). None: identity.
    fd:             torch.Tensor | None = None,             # Downsampling filter, likewise.
    b:              torch.Tensor | None = None,             # [C], dtype of x. None: no bias.
    up:             int                 = 1,                # Factor of both axes.
    down:           int                 = 1,                # Factor of both axes.
    padding:        int | Sequence[int] = 0,                # Zeros around the upsampled image: all, (x, y) or (left, right, top, bottom). Negative: crops.
    gain:           float               = np.sqrt(2),       # Factor after the leaky ReLU.
    slope:          float               = 0.2,              # Of the negative side.
    clamp:          float | None        = None,             # Largest magnitude after the gain. None: no clamping.
    flip_filter:    bool                = False,            # False: convolution. True: correlation. Of both filters.
    impl:           str                 = "cuda",           # "cuda": the fastest path for x's device; "ref": the definition.
) -> torch.Tensor:                                          # [N, C, H', W'], dtype of x.
    """Adds b; upsamples by `up` with the filter fu, keeping the brightness; clamp(gain * lrelu); filters with fd and keeps every `down`-th sample.

    Both filters see only whole neighbourhoods: of h = H * up + top + bottom - (taps of fu - 1) rows at the higher rate come
    H' = floor((h - taps of fd) / down) + 1, likewise W'. Differentiable twice in x and b; the filters are constants.
    """
    assert isinstance(x, torch.Tensor) and x.ndim == 4, f"x of shape {list(x.shape)}, expected [N, C, H, W]"
    assert impl in ("cuda", "ref"), f"impl {impl!r}, expected 'cuda' or 'ref'"
    assert isinstance(up, int) and up >= 1, f"up {up!r}, expected a whole number from 1 on"
    assert isinstance(down, int) and down >= 1, f"down {down!r}, expected a whole number from 1 on"
    assert clamp is None or clamp >= 0, f"clamp {clamp}, expected None or a number from 0 on"
    x, b = registry.in_one_dtype(x, b)
    if b is not None:
        assert b.shape == (x.shape[1],), f"b has shape {list(b.shape)}, expected [{x.shape[1]}] for x {list(x.shape)}"
        assert b.dtype == x.dtype, f"b is {b.dtype}, x is {x.dtype}"
    for name, f in (("fu", fu), ("fd", fd)):
        assert f is None or (f.dtype == torch.float32 and not f.requires_grad), \
            f"{name} of {f.dtype}, requires_grad={f.requires_grad}; expected a constant of float32"
    padding = edges(padding)
    (fu_w, fu_h), (fd_w, fd_h) = filter_size(fu), filter_size(fd)
    for size, before, after, fu_taps, fd_taps in ((x.shape[2], *padding[2:], fu_h, fd_h), (x.shape[3], *padding[:2], fu_w, fd_w)):
        assert output_size(output_size(size, up, 1, before, after, fu_taps), 1, down, 0, 0, fd_taps) >= 1, \
            f"x {list(x.shape)} with up {up} and padding {padding} is smaller than the filters of {fu_taps} and {fd_taps} taps need"

    settings = (x, fu, fd, b, up, down, padding, float(gain), float(slope), None if clamp is None else float(clamp), flip_filter)
    path = "reference" if impl == "ref" else custom_ops.path("filtered_lrelu", x.device.type)
    if path == "reference":
        return reference.filtered_lrelu(*settings)
    fused = x.device.type in ("cpu", "meta") or (path == "native" and native.takes(x, fu, fd, up, down))
    fused = fused and registry.available()
    return (operator if fused and operator.takes(x, fu, fd) else composed).filtered_lrelu(*settings)
