"""`bias_act` with PyTorch's operations, in as few passes over memory as they allow; its derivatives from the output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils.ops.bias_act.reference import Settings, activation_funcs

_SELU_SCALE = 1.0507009873554804934193349852946             # Klambauer et al. 2017
_SELU_ALPHA = 1.6732632423543772848170429916717


def bias_act(x: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
    """Same contract as the reference. Works in place on tensors that it made itself, if autograd allows it."""
    dim, act, alpha, gain, clamp = settings
    recorded = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    if act in ("linear", "relu", "lrelu") and gain > 0 and alpha >= 0:
        y = _piecewise_linear(x, b, settings)
    else:
        v = x if b is None else x + _along(b, dim, x.ndim)
        y = activation_funcs[act].func(v, alpha)
        if gain != 1:
            y = y * gain if recorded or y is v else y.mul_(gain)    # autograd keeps the activation's output
    if clamp < 0:
        return y
    return y.clamp(-clamp, clamp) if recorded or y is x else y.clamp_(-clamp, clamp)


def _piecewise_linear(x: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
    """These activations commute with a positive gain. So bias and gain are one pass: act(gain * x + gain * b)."""
    dim, act, alpha, gain, _ = settings
    if b is not None:
        bias = _along(b if gain == 1 else b * gain, dim, x.ndim)
        v = torch.add(bias, x, alpha=gain) if x.is_floating_point() and gain != 1 else x + bias
    else:
        v = x if gain == 1 else x * gain
    if act == "linear":
        return v
    if v is x:
        return functional.leaky_relu(v, alpha) if act == "lrelu" else functional.relu(v)
    # In place: their derivatives come from the output.
    return functional.leaky_relu_(v, alpha) if act == "lrelu" else functional.relu_(v)


def _along(b: Tensor, dim: int, ndim: int) -> Tensor:
    return b.reshape([-1 if i == dim else 1 for i in range(ndim)])


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives, from what the forward pass leaves behind: the output, for swish the input. As in bias_act.cuh.

def gradient(dy: Tensor, ref: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
    """The gradient of x. `ref` is the output (swish: x, and b the bias)."""
    u, free = _point(ref, b, settings)
    return dy * slope_at(settings.act, u, settings.alpha) * settings.gain * free


def gradient_in_ref(ddx: Tensor, dy: Tensor, ref: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
    """The gradient of `ref`, through which `gradient` depends on x; ddx is the gradient of its result."""
    u, free = _point(ref, b, settings)
    # If ref is the output, its gain and that of the way from ref to u cancel.
    scale = settings.gain if activation_funcs[settings.act].ref == "x" else 1.0
    return ddx * dy * bend_at(settings.act, u, settings.alpha) * scale * free


def _point(ref: Tensor, b: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
    """The point at which the derivative is taken, and a mask of what is not clamped."""
    _, act, _, gain, clamp = settings
    if activation_funcs[act].ref == "x":
        u = bias_act(ref, b, settings._replace(act="linear", alpha=0.0, gain=1.0, clamp=-1.0))
        y = u * torch.sigmoid(u) * gain
    else:
        u, y = ref / gain, ref
    return u, (torch.ones_like(y) if clamp < 0 else (y.abs() < clamp).to(y.dtype))


def slope_at(act: str, u: Tensor, alpha: float) -> Tensor:
    """The derivative act'(x + b), from u = act(x + b). For swish, whose slope has no such form, u = x + b."""
    one, positive = torch.ones_like(u), u > 0
    if act == "linear":
        return one
    if act in ("relu", "lrelu"):
        return torch.where(positive, one, one * (alpha if act == "lrelu" else 0.0))
    if act == "tanh":
        return 1 - u * u
    if act == "sigmoid":
        return u * (1 - u)
    if act == "elu":
        return torch.where(positive, one, u + 1)
    if act == "selu":
        return torch.where(positive, one * _SELU_SCALE, u + _SELU_SCALE * _SELU_ALPHA)
    if act == "softplus":
        return -torch.expm1(-u)
    assert act == "swish", act
    s = torch.sigmoid(u)
    return s * (1 + u * (1 - s))


def bend_at(act: str, u: Tensor, alpha: float) -> Tensor:
    """The derivative of `slope_at` in u."""
    if act in ("linear", "relu", "lrelu"):
        return torch.zeros_like(u)
    if act == "tanh":
        return -2 * u
    if act == "sigmoid":
        return 1 - 2 * u
    if act in ("elu", "selu"):
        return (u <= 0).to(u.dtype)
    if act == "softplus":
        return torch.exp(-u)
    assert act == "swish", act
    s = torch.sigmoid(u)
    return s * (1 - s) * (2 + u * (1 - 2 * s))
