"""Convolutions whose weight gradients can be switched off for a while.

PyTorch's own convolutions have correct gradients of any order, and autograd computes a weight gradient only if it is
asked for (tests/test_ops_convolutions.py checks this). What remains of StyleGAN's wrappers is the switch below, and
faster ways on CPUs (operator.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from torch_utils.ops import backends
from torch_utils.ops.conv2d_gradfix import operator

backends.declare("tile_conv", Path(__file__).parent, cpu="tile_conv_cpu.cpp")

enabled = True                      # Kept for scripts that set it. Both values give the same result.
weight_gradients_disabled = False   # Set by no_weight_gradients().


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Convolutions recorded inside treat their weight as a constant: its `.grad` gets nothing from them.

    For regularisers that need gradients of images only: they then compute no weight gradient. Can be nested;
    `disable=False` changes nothing.
    """
    global weight_gradients_disabled
    before = weight_gradients_disabled
    weight_gradients_disabled = before or disable
    try:
        yield
    finally:
        weight_gradients_disabled = before


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Sequence[int] = 1,
           padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1) -> Tensor:
    """As torch.nn.functional.conv2d."""
    weight = weight.detach() if weight_gradients_disabled else weight
    plain = bias is None and dilation == 1
    if plain and operator.takes(input, weight, stride, padding, groups, transposed=False):
        return operator.conv2d(input, weight, stride, padding)
    return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Sequence[int] = 1,
                     padding: int | Sequence[int] = 0, output_padding: int | Sequence[int] = 0, groups: int = 1,
                     dilation: int | Sequence[int] = 1) -> Tensor:
    """As torch.nn.functional.conv_transpose2d."""
    weight = weight.detach() if weight_gradients_disabled else weight
    plain = bias is None and output_padding == 0 and dilation == 1
    if plain and operator.takes(input, weight, stride, padding, groups, transposed=True):
        return operator.conv_transpose2d(input, weight, stride, padding)
    return functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
