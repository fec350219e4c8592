"""a * b + c with broadcasting."""

from __future__ import annotations

import torch
from torch import Tensor


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c, broadcast against each other, in one pass. Each gradient has the shape of its tensor, to any order."""
    return torch.addcmul(c, a, b)
