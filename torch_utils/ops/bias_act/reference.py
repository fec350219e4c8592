"""`bias_act` by its definition. Slow, short, and what every other path is tested against."""

from __future__ import annotations

import torch

from torch_utils.ops.bias_act.activations import activation_funcs


def bias_act(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None) -> torch.Tensor:
    """clamp(gain * act(x + b), -clamp, clamp), each step an ordinary tensor operation."""
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    y = activation_funcs[act].func(x, alpha) * gain
    return y if clamp is None else y.clamp(-clamp, clamp)
