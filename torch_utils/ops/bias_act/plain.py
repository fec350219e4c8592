"""`bias_act` of ordinary tensor operations, in as few passes over memory as they allow."""

from __future__ import annotations

import torch
from torch.nn import functional

from torch_utils.ops.bias_act.activations import activation_funcs


def bias_act(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None) -> torch.Tensor:
    """Same contract as the reference. Works in place on tensors that it made itself, as far as autograd allows."""
    recorded = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    if act in ("linear", "relu", "lrelu") and gain > 0 and alpha >= 0:
        y = _piecewise_linear(x, b, dim, act, alpha, gain)
    else:
        v = x if b is None else x + _along(b, dim, x.ndim)
        y = activation_funcs[act].func(v, alpha)
        if gain != 1:
            y = y * gain if recorded or y is v else y.mul_(gain)    # autograd keeps the activation's output
    if clamp is None:
        return y
    return y.clamp(-clamp, clamp) if recorded or y is x else y.clamp_(-clamp, clamp)


def _piecewise_linear(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float) -> torch.Tensor:
    """These activations commute with a positive gain, so bias and gain are one pass: act(gain * x + gain * b)."""
    if b is not None:
        bias = _along(b if gain == 1 else b * gain, dim, x.ndim)
        v = torch.add(bias, x, alpha=gain) if x.is_floating_point() and gain != 1 else x + bias
    else:
        v = x if gain == 1 else x * gain
    if act == "linear":
        return v
    if v is x:
        return functional.leaky_relu(v, alpha) if act == "lrelu" else functional.relu(v)
    return functional.leaky_relu_(v, alpha) if act == "lrelu" else functional.relu_(v)     # their derivatives come from the output


def _along(b: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    return b.reshape([-1 if i == dim else 1 for i in range(ndim)])
