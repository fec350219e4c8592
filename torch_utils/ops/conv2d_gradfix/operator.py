"""Convolutions on CPUs, their adjoints and their weight gradients: three bilinear operators, closed under derivatives.

    down(x, w)[o, p]  = sum_ia  w[o, i, a] x[i, s p + a]
    up(y, w)[i, q]    = sum_oa  w[o, i, a] y[o, (q - a) / s]        if s divides q - a
    taps(x, y)[o, i, a] = sum_p  y[o, p] x[i, s p + a]

Padding shifts x by so many pixels; beyond its edges x is zero. Two things are faster here than in PyTorch
(docs/experiments.md has the numbers):

- Weight gradients with a stride run there at less than half of the usual rate. As a sum over pixels for each tap they
  are matrix products, about twice as fast.
- Matrix units of CPUs, which PyTorch leaves to half precision (cpu.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils.ops import backends
from torch_utils.ops.conv2d_gradfix import cpu

LEAST_CHANNELS = 64                     # with fewer, PyTorch's own weight gradients with a stride are as fast


def takes(x: Tensor, w: Tensor, stride: Any, padding: Any, groups: int, transposed: bool) -> bool:
    """Is this faster than PyTorch's conv2d, or conv_transpose2d, with these arguments?"""
    if not (isinstance(stride, int) and groups == 1 and x.device.type == "cpu" and x.dtype == w.dtype == torch.float32):
        return False
    if not x.ndim == w.ndim == 4 or x.shape[1] != w.shape[0 if transposed else 1] or not _is_pair(padding):
        return False                                                # PyTorch says what is wrong
    if backends.choose("tile_conv", x, lambda: not torch.is_autocast_enabled("cpu"), always=True) != "operator":
        return False
    padding = _pair(padding)
    size = (_size_up if transposed else _size_down)(x.shape[2:], w.shape[2:], stride, padding)
    y_shape = torch.Size([x.shape[0], w.shape[1 if transposed else 0], *size])
    shapes = (y_shape, x.shape) if transposed else (x.shape, y_shape)
    if cpu.takes(*shapes, w.shape[2:], stride, x.dtype):
        return True
    recorded = torch.is_grad_enabled() and w.requires_grad
    return recorded and stride > 1 and padding == (0, 0) and min(w.shape[:2]) >= LEAST_CHANNELS


def conv2d(x: Tensor, w: Tensor, stride: int, padding: int | Sequence[int] = 0) -> Tensor:
    """torch.nn.functional.conv2d(x, w, stride=stride, padding=padding). Differentiable any number of times."""
    return _down(x, w, stride, _pair(padding))


def conv_transpose2d(y: Tensor, w: Tensor, stride: int, padding: int | Sequence[int] = 0) -> Tensor:
    """torch.nn.functional.conv_transpose2d(y, w, stride=stride, padding=padding). As often differentiable."""
    padding = _pair(padding)
    return _up(y, w, stride, _size_up(y.shape[2:], w.shape[2:], stride, padding), padding)


def _is_pair(padding: Any) -> bool:
    """One number, or two."""
    if isinstance(padding, int):
        return True
    return isinstance(padding, Sequence) and not isinstance(padding, str) and len(padding) == 2


def _pair(padding: int | Sequence[int]) -> tuple[int, int]:
    return (padding, padding) if isinstance(padding, int) else tuple(padding)


def _size_down(size: Sequence[int], kernel: Sequence[int], stride: int, padding: Sequence[int]) -> list[int]:
    return [(n + 2 * pad - k) // stride + 1 for n, k, pad in zip(size, kernel, padding)]


def _size_up(size: Sequence[int], kernel: Sequence[int], stride: int, padding: Sequence[int]) -> list[int]:
    return [(n - 1) * stride + k - 2 * pad for n, k, pad in zip(size, kernel, padding)]


def _tiles_down(x: Tensor, w: Tensor, stride: int, padding: Sequence[int]) -> bool:
    size = _size_down(x.shape[2:], w.shape[2:], stride, padding)
    return cpu.takes(x.shape, torch.Size([len(x), len(w), *size]), w.shape[2:], stride, x.dtype)


def _tiles_up(y: Tensor, w: Tensor, stride: int, size: Sequence[int]) -> bool:
    return cpu.takes(torch.Size([len(y), w.shape[1], *size]), y.shape, w.shape[2:], stride, y.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels.

def _run_down(x: Tensor, w: Tensor, stride: int, padding: Sequence[int] = (0, 0)) -> Tensor:
    return (cpu.down if _tiles_down(x, w, stride, padding) else _plain_down)(x, w, stride, padding)


def _run_up(y: Tensor, w: Tensor, stride: int, size: list[int], padding: Sequence[int] = (0, 0)) -> Tensor:
    return (cpu.up if _tiles_up(y, w, stride, size) else _plain_up)(y, w, stride, size, padding)


def _run_taps(x: Tensor, y: Tensor, stride: int, kernel: list[int], padding: Sequence[int] = (0, 0)) -> Tensor:
    if cpu.takes(x.shape, y.shape, kernel, stride, x.dtype):
        return cpu.taps(x, y, stride, kernel, padding)
    x = x if tuple(padding) == (0, 0) else functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = ((n - 1) * stride + 1 for n in y.shape[2:])
    rows = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1]).t()                                            # [O, N * h * w]
    found = y.new_empty([*kernel, y.shape[1], x.shape[1]])
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            met = x[:, :, a : a + height : stride, b : b + width : stride]                              # [N, I, h, w]
            torch.mm(rows, met.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), out=found[a, b])
    return found.permute(2, 3, 0, 1).contiguous()


def _plain_down(x: Tensor, w: Tensor, stride: int, padding: Sequence[int]) -> Tensor:
    return functional.conv2d(x, w, stride=stride, padding=padding)


def _plain_up(y: Tensor, w: Tensor, stride: int, size: Sequence[int], padding: Sequence[int]) -> Tensor:
    least = _size_up(y.shape[2:], w.shape[2:], stride, padding)
    beyond = [full - given for full, given in zip(size, least)]                                 # what `down` ignores
    return functional.conv_transpose2d(y, w, stride=stride, padding=padding, output_padding=beyond)


def _fake_down(x: Tensor, w: Tensor, stride: int, padding: Sequence[int] = (0, 0)) -> Tensor:
    y = _plain_down(x, w, stride, padding)
    return torch.empty_like(y, memory_format=torch.channels_last) if _tiles_down(x, w, stride, padding) else y


def _fake_up(y: Tensor, w: Tensor, stride: int, size: list[int], padding: Sequence[int] = (0, 0)) -> Tensor:
    x = _plain_up(y, w, stride, size, padding)
    return torch.empty_like(x, memory_format=torch.channels_last) if _tiles_up(y, w, stride, size) else x


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives.

def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    first, second, ctx.stride, ctx.padding = *inputs[:3], inputs[-1]
    ctx.save_for_backward(first, second)


def _backward_down(ctx: Any, g: Tensor) -> tuple:
    x, w = ctx.saved_tensors
    dx = _up(g, w, ctx.stride, list(x.shape[2:]), ctx.padding) if ctx.needs_input_grad[0] else None
    dw = _taps(x, g, ctx.stride, list(w.shape[2:]), ctx.padding) if ctx.needs_input_grad[1] else None
    return dx, dw, None, None


def _backward_up(ctx: Any, g: Tensor) -> tuple:
    y, w = ctx.saved_tensors
    dy = _down(g, w, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
    dw = _taps(g, y, ctx.stride, list(w.shape[2:]), ctx.padding) if ctx.needs_input_grad[1] else None
    return dy, dw, None, None, None


def _backward_taps(ctx: Any, g: Tensor) -> tuple:
    x, y = ctx.saved_tensors
    dx = _up(y, g, ctx.stride, list(x.shape[2:]), ctx.padding) if ctx.needs_input_grad[0] else None
    dy = _down(x, g, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
    return dx, dy, None, None, None


_down = backends.register(
    "strided_conv_down(Tensor x, Tensor w, int stride, int[2] padding=0) -> Tensor",
    kernels={"CPU": _run_down}, fake=_fake_down, setup_context=_keep, backward=_backward_down)

_up = backends.register(
    "strided_conv_up(Tensor y, Tensor w, int stride, SymInt[] size, int[2] padding=0) -> Tensor",
    kernels={"CPU": _run_up}, fake=_fake_up, setup_context=_keep, backward=_backward_up)

_taps = backends.register(
    "strided_conv_taps(Tensor x, Tensor y, int stride, SymInt[] kernel, int[2] padding=0) -> Tensor",
    kernels={"CPU": _run_taps},
    fake=lambda x, y, stride, kernel, padding=(0, 0): x.new_empty([y.shape[1], x.shape[1], *kernel]),
    setup_context=_keep, backward=_backward_taps)
