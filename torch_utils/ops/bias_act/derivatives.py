"""Derivatives of the activations from what the forward pass leaves behind. The Python twin of `slope_at` and `bend_at` in bias_act.cuh.

The argument u is act(x + b), which the output divided by the gain gives; for swish, which has no such form, it is x + b.
"""

from __future__ import annotations

import torch

_SELU_SCALE = 1.0507009873554804934193349852946             # Klambauer et al. 2017
_SELU_ALPHA = 1.6732632423543772848170429916717


def slope_at(act: str, u: torch.Tensor, alpha: float) -> torch.Tensor:
    """act'(x + b)."""
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


def bend_at(act: str, u: torch.Tensor, alpha: float) -> torch.Tensor:
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
