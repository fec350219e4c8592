"""Convolutions with a stride, their adjoints and their weight gradients: three bilinear operators, closed under derivatives.

PyTorch's own are right, but its weight gradients with a stride run at less than half of the rate of others on CPUs. As a sum
over pixels for each tap they are matrix products, about twice as fast (docs/experiments.md).

    down(x, w)[o, p]  = sum_ia  w[o, i, a] x[i, s p + a]
    up(y, w)[i, q]    = sum_oa  w[o, i, a] y[o, (q - a) / s]        where s divides q - a
    taps(x, y)[o, i, a] = sum_p  y[o, p] x[i, s p + a]
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import registry

LEAST_CHANNELS = 64                     # with fewer, PyTorch's own weight gradients are as fast


def takes(x: torch.Tensor, w: torch.Tensor, stride: Any, groups: int) -> bool:
    """Is something gained? Only where weight gradients will be asked for."""
    if not (isinstance(stride, int) and stride > 1 and groups == 1 and x.device.type == "cpu" and x.dtype == w.dtype == torch.float32):
        return False
    if min(w.shape[:2]) < LEAST_CHANNELS or torch.is_autocast_enabled("cpu") or not registry.available():
        return False
    return torch.is_grad_enabled() and w.requires_grad and custom_ops.mode() != "reference"


def conv2d(x: torch.Tensor, w: torch.Tensor, stride: int) -> torch.Tensor:
    """torch.nn.functional.conv2d(x, w, stride=stride). Differentiable any number of times."""
    return _down(x, w, stride)


def conv_transpose2d(y: torch.Tensor, w: torch.Tensor, stride: int) -> torch.Tensor:
    """torch.nn.functional.conv_transpose2d(y, w, stride=stride). Differentiable any number of times."""
    return _up(y, w, stride, [(n - 1) * stride + k for n, k in zip(y.shape[2:], w.shape[2:])])


# ---------------------------------------------------------------------------------------------------------------------

def _run_down(x: torch.Tensor, w: torch.Tensor, stride: int) -> torch.Tensor:
    return functional.conv2d(x, w, stride=stride)


def _run_up(y: torch.Tensor, w: torch.Tensor, stride: int, size: list[int]) -> torch.Tensor:
    left = [full - (n - 1) * stride - k for full, n, k in zip(size, y.shape[2:], w.shape[2:])]         # rows and columns that `down` passes over
    return functional.conv_transpose2d(y, w, stride=stride, output_padding=left)


def _run_taps(x: torch.Tensor, y: torch.Tensor, stride: int, kernel: list[int]) -> torch.Tensor:
    height, width = ((n - 1) * stride + 1 for n in y.shape[2:])
    rows = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1]).t()                                            # [O, N * h * w]
    found = y.new_empty([*kernel, y.shape[1], x.shape[1]])
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            met = x[:, :, a : a + height : stride, b : b + width : stride]                              # [N, I, h, w]
            torch.mm(rows, met.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), out=found[a, b])
    return found.permute(2, 3, 0, 1).contiguous()


def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    first, second, ctx.stride = inputs[:3]
    ctx.save_for_backward(first, second)


def _backward_down(ctx: Any, g: torch.Tensor) -> tuple:
    x, w = ctx.saved_tensors
    return (_up(g, w, ctx.stride, list(x.shape[2:])) if ctx.needs_input_grad[0] else None,
            _taps(x, g, ctx.stride, list(w.shape[2:])) if ctx.needs_input_grad[1] else None, None)


def _backward_up(ctx: Any, g: torch.Tensor) -> tuple:
    y, w = ctx.saved_tensors
    return (_down(g, w, ctx.stride) if ctx.needs_input_grad[0] else None,
            _taps(g, y, ctx.stride, list(w.shape[2:])) if ctx.needs_input_grad[1] else None, None, None)


def _backward_taps(ctx: Any, g: torch.Tensor) -> tuple:
    x, y = ctx.saved_tensors
    return (_up(y, g, ctx.stride, list(x.shape[2:])) if ctx.needs_input_grad[0] else None,
            _down(x, g, ctx.stride) if ctx.needs_input_grad[1] else None, None, None)


_down = registry.register(
    "strided_conv_down(Tensor x, Tensor w, int stride) -> Tensor",
    kernels={"CPU": _run_down}, fake=_run_down, setup_context=_keep, backward=_backward_down)

_up = registry.register(
    "strided_conv_up(Tensor y, Tensor w, int stride, SymInt[] size) -> Tensor",
    kernels={"CPU": _run_up}, fake=_run_up, setup_context=_keep, backward=_backward_up)

_taps = registry.register(
    "strided_conv_taps(Tensor x, Tensor y, int stride, SymInt[] kernel) -> Tensor",
    kernels={"CPU": _run_taps}, fake=lambda x, y, stride, kernel: x.new_empty([y.shape[1], x.shape[1], *kernel]),
    setup_context=_keep, backward=_backward_taps)
