"""a * b + c with broadcasting."""

from __future__ import annotations

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c, broadcast against each other, in one pass. Each gradient has the shape of its tensor, to any order."""
    return torch.addcmul(c, a, b)
