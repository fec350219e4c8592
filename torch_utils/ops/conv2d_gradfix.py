"""Convolutions of which the weight gradients can be switched off for a while.

Today's built-in convolutions have right gradients of any order, and autograd computes a weight gradient only where someone
asks for it (tests/test_ops_convolutions.py holds it to that). What is left of StyleGAN's wrappers is the switch below, and
a faster way to weight gradients with a stride.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

from torch_utils.ops import strided_conv

enabled = True                      # Kept for scripts that set it. Both values give the same result.
weight_gradients_disabled = False   # Set by no_weight_gradients().


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Convolutions recorded inside treat their weight as a constant; their weight's `.grad` gets nothing from them.

    Made for regularisers that need gradients of images only: they then cost no weight gradient. Nests; `disable=False` changes nothing.
    """
    global weight_gradients_disabled
    before = weight_gradients_disabled
    weight_gradients_disabled = before or disable
    try:
        yield
    finally:
        weight_gradients_disabled = before


def conv2d(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: int | Sequence[int] = 1,
           padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1) -> torch.Tensor:
    """As torch.nn.functional.conv2d."""
    weight = weight.detach() if weight_gradients_disabled else weight
    if bias is None and dilation == 1 and strided_conv.takes(input, weight, stride, padding, groups, transposed=False):
        return strided_conv.conv2d(input, weight, stride, padding)
    return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: int | Sequence[int] = 1,
                     padding: int | Sequence[int] = 0, output_padding: int | Sequence[int] = 0, groups: int = 1,
                     dilation: int | Sequence[int] = 1) -> torch.Tensor:
    """As torch.nn.functional.conv_transpose2d."""
    weight = weight.detach() if weight_gradients_disabled else weight
    if bias is None and output_padding == 0 and dilation == 1 and strided_conv.takes(input, weight, stride, padding, groups, transposed=True):
        return strided_conv.conv_transpose2d(input, weight, stride, padding)
    return functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
