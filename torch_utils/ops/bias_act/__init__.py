"""Bias, activation, gain and clamp in one operation."""

from __future__ import annotations

import torch

from torch_utils import custom_ops
from torch_utils.ops.bias_act import native, plain, reference
from torch_utils.ops.bias_act.activations import activation_funcs

__all__ = ["activation_funcs", "bias_act"]


def bias_act(
    x:      torch.Tensor,                   # Any shape, any floating dtype.
    b:      torch.Tensor | None = None,     # [x.shape[dim]], dtype of x. None: no bias.
    dim:    int                 = 1,        # The dimension of x that b runs along.
    act:    str                 = "linear", # A name in activation_funcs.
    alpha:  float | None        = None,     # Shape of the activation (slope of lrelu). None: the table's value.
    gain:   float | None        = None,     # Factor after the activation. None: the table's value.
    clamp:  float | None        = None,     # Largest magnitude of the result. None: no clamping.
    impl:   str                 = "cuda",   # "cuda": the fastest path for x's device; "ref": the definition.
) -> torch.Tensor:                          # Shape and dtype of x.
    """clamp(gain * act(x + b)). Differentiable twice in x and b.

    Where the result is clamped, both gradients are zero. On the GPU the derivative is taken from the output where the activation
    allows it (all but swish), so no copy of the input is kept for the backward pass.
    """
    assert impl in ("cuda", "ref"), f"impl {impl!r}, expected 'cuda' or 'ref'"
    assert act in activation_funcs, f"activation {act!r}, expected one of {', '.join(activation_funcs)}"
    assert clamp is None or clamp >= 0, f"clamp {clamp}, expected None or a number from 0 on"
    if b is not None:
        assert 0 <= dim < x.ndim, f"dim {dim} of a tensor with {x.ndim} dimensions"
        assert b.shape == (x.shape[dim],), f"b has shape {list(b.shape)}, expected [{x.shape[dim]}] for dimension {dim} of x {list(x.shape)}"
        assert b.dtype == x.dtype, f"b is {b.dtype}, x is {x.dtype}"
    row = activation_funcs[act]
    alpha = float(row.def_alpha if alpha is None else alpha)
    gain = float(row.def_gain if gain is None else gain)
    clamp = None if clamp is None else float(clamp)

    path = "reference" if impl == "ref" else custom_ops.path("bias_act", x.device.type)
    if path == "native" and native.takes(x, b, act, alpha, gain, clamp):
        return native.bias_act(x, b, dim, act, alpha, gain, clamp)
    return (reference if path == "reference" else plain).bias_act(x, b, dim, act, alpha, gain, clamp)
