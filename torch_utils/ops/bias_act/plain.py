"""`bias_act` of ordinary tensor operations in as few passes over memory as they allow."""

from __future__ import annotations

import torch

from torch_utils.ops.bias_act.activations import activation_funcs


def bias_act(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None) -> torch.Tensor:
    """Same contract as the reference."""
    fresh = b is not None
    if fresh:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    y = activation_funcs[act].func(x, alpha)
    if gain != 1:
        y = y * gain
    return y if clamp is None else y.clamp(-clamp, clamp)
