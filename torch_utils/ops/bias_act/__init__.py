"""Bias, activation, gain and clamp in one operation."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from torch_utils.ops import backends, fma
from torch_utils.ops.bias_act import cpu, operator, plain, reference
from torch_utils.ops.bias_act.reference import Settings, activation_funcs

__all__ = ["activation_funcs", "bias_act", "scaled_bias_act"]

backends.declare("bias_act", Path(__file__).parent, cuda="bias_act.cu", cpu="bias_act_cpu.cpp")
_PATHS = dict(reference=reference, operator=operator, plain=plain)


def bias_act(
    x:      Tensor,                         # Any shape, any floating dtype.
    b:      Tensor | None   = None,         # [x.shape[dim]], dtype of x. None: no bias.
    dim:    int             = 1,            # The dimension of x that b runs along.
    act:    str             = "linear",     # A name in activation_funcs.
    alpha:  float | None    = None,         # Shape of the activation (slope of lrelu). None: the table's value.
    gain:   float | None    = None,         # Factor after the activation. None: the table's value.
    clamp:  float | None    = None,         # Largest magnitude of the result. None: no clamping.
    impl:   str             = "cuda",       # "cuda": the fastest path for x's device; "ref": the definition.
) -> Tensor:                                # Shape and dtype of x.
    """clamp(gain * act(x + b)). Differentiable twice in x and b.

    Where the result is clamped, both gradients are zero. The native paths take the derivative from the output (except
    for swish), so that no copy of the input is kept for the backward pass.
    """
    return scaled_bias_act(x, b, dim, act, alpha, gain, clamp, impl)


def scaled_bias_act(
    x:       Tensor,                        # [N, C, H, W], any floating dtype. Without scale and noise: any shape.
    b:       Tensor | None  = None,
    dim:     int            = 1,            # With scale or noise: 1.
    act:     str            = "linear",
    alpha:   float | None   = None,
    gain:    float | None   = None,
    clamp:   float | None   = None,
    impl:    str            = "auto",       # "auto": the fastest path for x's device; "ref": the definition.
    scale:   Tensor | None  = None,         # Factor of x per sample and channel, [N, C]. None: 1.
    noise:   Tensor | None  = None,         # Added to all channels: [N or 1, 1, H, W] or [H, W]. None: 0.
    inplace: bool           = False,        # May x be overwritten? Happens only if autograd records nothing.
) -> Tensor:                                # Shape and dtype of x.
    """clamp(gain * act(x * scale + noise + b)): all that follows a modulated convolution.

    Differentiable twice in x, b, scale and noise. Otherwise like bias_act; the native path for CPUs keeps x for the
    backward pass if `scale` needs a gradient.
    """
    assert act in activation_funcs, f"activation {act!r}, expected one of {', '.join(activation_funcs)}"
    assert clamp is None or clamp >= 0, f"clamp {clamp}, expected None or a number from 0 on"
    x, b, scale, noise = backends.in_one_dtype(x, b, scale, noise)
    _check_tensors(x, b, dim, scale, noise)
    row = activation_funcs[act]
    settings = Settings(dim, act, float(row.def_alpha if alpha is None else alpha),
                        float(row.def_gain if gain is None else gain), -1.0 if clamp is None else float(clamp))

    on_cpu = x.device.type == "cpu"
    path = backends.choose(
        "bias_act", x, lambda: cpu.takes(x, settings) if on_cpu else operator.takes(x, b, settings), impl)
    if on_cpu and path == "operator":
        return cpu.bias_act(x, b, scale, noise, settings, inplace)
    return _PATHS[path].bias_act(_scale_and_add(x, scale, noise), b, settings)


def _check_tensors(x: Tensor, b: Tensor | None, dim: int, scale: Tensor | None, noise: Tensor | None) -> None:
    shape = list(x.shape)
    if b is not None:
        assert 0 <= dim < x.ndim, f"dim {dim} of a tensor with {x.ndim} dimensions"
        assert b.shape == (x.shape[dim],), \
            f"b has shape {list(b.shape)}, expected [{x.shape[dim]}] for dimension {dim} of x {shape}"
        assert b.dtype == x.dtype, f"b is {b.dtype}, x is {x.dtype}"
    for name, tensor in (("scale", scale), ("noise", noise)):
        if tensor is not None:
            assert x.ndim == 4 and dim == 1, f"{name} with x {shape} and dim {dim}, expected x [N, C, H, W] and dim 1"
            assert tensor.dtype == x.dtype, f"{name} is {tensor.dtype}, x is {x.dtype}"
    assert scale is None or scale.shape == x.shape[:2], \
        f"scale has shape {list(scale.shape)}, expected [N, C] of x {shape}"
    if noise is not None:
        N, _, H, W = x.shape
        assert noise.shape in ((N, 1, H, W), (1, 1, H, W), (H, W)), \
            f"noise has shape {list(noise.shape)}, expected [N or 1, 1, H, W] or [H, W] of x {shape}"


def _scale_and_add(x: Tensor, scale: Tensor | None, noise: Tensor | None) -> Tensor:
    """x * scale + noise."""
    if scale is None:
        return x if noise is None else x + noise
    scale = scale[:, :, None, None]
    return x * scale if noise is None else fma.fma(x, scale, noise)
