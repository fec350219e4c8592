"""Bias, activation, gain and clamp in one operation."""

from __future__ import annotations

import torch

from torch_utils import custom_ops
from torch_utils.ops import fma, registry
from torch_utils.ops.bias_act import native, native_cpu, operator_cpu, plain, reference
from torch_utils.ops.bias_act.activations import activation_funcs

__all__ = ["activation_funcs", "bias_act", "scaled_bias_act"]


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

    Where the result is clamped, both gradients are zero. The native paths take the derivative from the output where the activation
    allows it (all but swish), so no copy of the input is kept for the backward pass.
    """
    return scaled_bias_act(x, b, dim, act, alpha, gain, clamp, impl)


def scaled_bias_act(
    x:       torch.Tensor,                  # [N, C, H, W], any floating dtype. Without scale and noise: any shape.
    b:       torch.Tensor | None = None,
    dim:     int                 = 1,       # With scale or noise: 1.
    act:     str                 = "linear",
    alpha:   float | None        = None,
    gain:    float | None        = None,
    clamp:   float | None        = None,
    impl:    str                 = "cuda",
    scale:   torch.Tensor | None = None,    # Factor of x per sample and channel, [N, C]. None: 1.
    noise:   torch.Tensor | None = None,    # Added to all channels: [N or 1, 1, H, W] or [H, W]. None: 0.
    inplace: bool                = False,   # May x be overwritten? Only where autograd records nothing.
) -> torch.Tensor:                          # Shape and dtype of x.
    """clamp(gain * act(x * scale + noise + b)): all that follows a modulated convolution. Differentiable twice in x, b, scale and noise.

    As bias_act; the native path for CPUs keeps x for the backward pass where `scale` has a gradient.
    """
    assert impl in ("cuda", "ref"), f"impl {impl!r}, expected 'cuda' or 'ref'"
    assert act in activation_funcs, f"activation {act!r}, expected one of {', '.join(activation_funcs)}"
    assert clamp is None or clamp >= 0, f"clamp {clamp}, expected None or a number from 0 on"
    x, b, scale, noise = registry.in_one_dtype(x, b, scale, noise)
    _check_tensors(x, b, dim, scale, noise)
    row = activation_funcs[act]
    alpha = float(row.def_alpha if alpha is None else alpha)
    gain = float(row.def_gain if gain is None else gain)
    clamp = None if clamp is None else float(clamp)

    on_cpu = x.device.type == "cpu"
    if impl == "ref" or custom_ops.mode() == "reference":
        path = "reference"
    elif not registry.available() or (on_cpu and not native_cpu.takes(x, dim, act, alpha, gain)):
        path = "plain"
    else:
        path = custom_ops.path("bias_act", x.device.type)
    if on_cpu and path == "native":
        return operator_cpu.bias_act(x, b, act, alpha, gain, clamp, scale, noise, inplace)
    x = _scale_and_add(x, scale, noise)
    if path == "native" and native.takes(x, b, act, alpha, gain, clamp):
        return native.bias_act(x, b, dim, act, alpha, gain, clamp)
    return (reference if path == "reference" else plain).bias_act(x, b, dim, act, alpha, gain, clamp)


def _check_tensors(x: torch.Tensor, b: torch.Tensor | None, dim: int, scale: torch.Tensor | None, noise: torch.Tensor | None) -> None:
    if b is not None:
        assert 0 <= dim < x.ndim, f"dim {dim} of a tensor with {x.ndim} dimensions"
        assert b.shape == (x.shape[dim],), f"b has shape {list(b.shape)}, expected [{x.shape[dim]}] for dimension {dim} of x {list(x.shape)}"
        assert b.dtype == x.dtype, f"b is {b.dtype}, x is {x.dtype}"
    for name, tensor in (("scale", scale), ("noise", noise)):
        if tensor is not None:
            assert x.ndim == 4 and dim == 1, f"{name} with x {list(x.shape)} and dim {dim}, expected x [N, C, H, W] and dim 1"
            assert tensor.dtype == x.dtype, f"{name} is {tensor.dtype}, x is {x.dtype}"
    assert scale is None or scale.shape == x.shape[:2], f"scale has shape {list(scale.shape)}, expected [N, C] of x {list(x.shape)}"
    if noise is not None:
        N, _, H, W = x.shape
        assert noise.shape in ((N, 1, H, W), (1, 1, H, W), (H, W)), \
            f"noise has shape {list(noise.shape)}, expected [N or 1, 1, H, W] or [H, W] of x {list(x.shape)}"


def _scale_and_add(x: torch.Tensor, scale: torch.Tensor | None, noise: torch.Tensor | None) -> torch.Tensor:
    """x * scale + noise."""
    if scale is None:
        return x if noise is None else x + noise
    scale = scale[:, :, None, None]
    return x * scale if noise is None else fma.fma(x, scale, noise)
