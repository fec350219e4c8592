"""`filtered_lrelu` as registered operators: fused kernels on CPUs and GPUs, band matrices where there is no compiler, and the derivatives between them.

Two operators: the function y(x), and the derivative of y at x, which is linear: along a direction or, transposed, backwards. Each of
these two is the other's derivative in v; in x both have zero almost everywhere. So gradients of any order exist, and no forward pass
leaves anything behind but its input: what was positive at the higher rate is computed again.
"""

from __future__ import annotations

from typing import Any

import torch

from torch_utils import custom_ops
from torch_utils.ops import launching, registry
from torch_utils.ops.filtered_lrelu import native, native_cpu, plain
from torch_utils.ops.upfirdn2d.arguments import filter_size, output_size


def takes(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None) -> bool:
    """Are the operators defined for this call? Without any filter they would be the slow way to `bias_act`."""
    filters = [f for f in (fu, fd) if f is not None]
    return bool(filters) and all(f.ndim == 1 and f.device == x.device for f in filters) and x.dtype in launching.DTYPES


def filtered_lrelu(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, up: int, down: int,
                   padding: tuple[int, int, int, int], gain: float, slope: float, clamp: float | None, flip_filter: bool) -> torch.Tensor:
    """Same contract as the reference, for calls that it `takes`."""
    return _function(x, fu, fd, b, up, down, padding, gain, slope, -1.0 if clamp is None else clamp, flip_filter)


def sizes(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, up: int, down: int,
          padding: list[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) at the higher rate, and of the result."""
    fu_taps, fd_taps = filter_size(fu)[0], filter_size(fd)[0]
    height = output_size(x.shape[2], up, 1, padding[2], padding[3], fu_taps)
    width = output_size(x.shape[3], up, 1, padding[0], padding[1], fu_taps)
    return (height, width), (output_size(height, 1, down, 0, 0, fd_taps), output_size(width, 1, down, 0, 0, fd_taps))


def empty_like(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Uninitialised, in the memory format of x."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty([*x.shape[:2], height, width], dtype=x.dtype, device=x.device, memory_format=memory_format)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels. `settings` = up, down, padding, gain, slope, clamp, flip_filter, and of the derivative also transposed.

def _fake(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, *settings: Any) -> torch.Tensor:
    return empty_like(x, *sizes(x, fu, fd, *settings[:3])[1])


def _fake_derivative(x: torch.Tensor, v: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None,
                     *settings: Any) -> torch.Tensor:
    return empty_like(x, *(x.shape[2:] if settings[-1] else sizes(x, fu, fd, *settings[:3])[1]))


def _cpu(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, *settings: Any) -> torch.Tensor:
    both = sizes(x, fu, fd, *settings[:3])
    if _is_native(x):
        y = native_cpu.run(custom_ops.library("filtered_lrelu", "cpu"), x, None, fu, fd, b, *settings, False, *both)
    else:
        y = plain.forward(x, fu, fd, b, *settings, *both)
    return _laid_out(y, _fake(x, fu, fd, b, *settings))


def _cpu_derivative(x: torch.Tensor, v: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None,
                    *settings: Any) -> torch.Tensor:
    both = sizes(x, fu, fd, *settings[:3])
    if _is_native(x):
        y = native_cpu.run(custom_ops.library("filtered_lrelu", "cpu"), x, v, fu, fd, b, *settings, *both)
    else:
        y = plain.derivative(x, v, fu, fd, b, *settings, *both)
    return _laid_out(y, _fake_derivative(x, v, fu, fd, b, *settings))


def _is_native(x: torch.Tensor) -> bool:
    return native_cpu.takes(x) and custom_ops.path("filtered_lrelu", "cpu") == "native"


def _cuda(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, *settings: Any) -> torch.Tensor:
    y = native.run(custom_ops.library("filtered_lrelu"), x, None, fu, fd, b, *settings, False, *sizes(x, fu, fd, *settings[:3]))
    return _laid_out(y, _fake(x, fu, fd, b, *settings))


def _cuda_derivative(x: torch.Tensor, v: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None,
                     *settings: Any) -> torch.Tensor:
    y = native.run(custom_ops.library("filtered_lrelu"), x, v, fu, fd, b, *settings, *sizes(x, fu, fd, *settings[:3]))
    return _laid_out(y, _fake_derivative(x, v, fu, fd, b, *settings))


def _laid_out(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return y if y.stride() == like.stride() else like.copy_(y)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives.

def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, fu, fd, b, *ctx.settings = inputs
    ctx.save_for_backward(x, fu, fd, b)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple:
    x, *others = ctx.saved_tensors
    dx = _derivative(x, dy, *others, *ctx.settings, True)
    db = dx.sum([0, 2, 3]) if ctx.needs_input_grad[3] else None
    return dx if ctx.needs_input_grad[0] else None, None, None, db, *[None] * 7


def _keep_derivative(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, _, fu, fd, b, *ctx.settings, ctx.transposed = inputs
    ctx.save_for_backward(x, fu, fd, b)


def _backward_derivative(ctx: Any, dy: torch.Tensor) -> tuple:
    x, fu, fd, b = ctx.saved_tensors
    dv = _derivative(x, dy, fu, fd, b, *ctx.settings, not ctx.transposed) if ctx.needs_input_grad[1] else None
    dx = x.new_zeros([]).expand_as(x) if ctx.needs_input_grad[0] else None
    db = b.new_zeros([]).expand_as(b) if ctx.needs_input_grad[4] else None
    return dx, dv, None, None, db, *[None] * 8


_SETTINGS = "int up, int down, SymInt[] padding, float gain, float slope, float clamp, bool flip_filter"

_function = registry.register(
    f"filtered_lrelu(Tensor x, Tensor? fu, Tensor? fd, Tensor? b, {_SETTINGS}) -> Tensor",
    kernels={"CPU": _cpu, "CUDA": _cuda}, fake=_fake, setup_context=_keep, backward=_backward)

_derivative = registry.register(
    f"filtered_lrelu_derivative(Tensor x, Tensor v, Tensor? fu, Tensor? fd, Tensor? b, {_SETTINGS}, bool transposed) -> Tensor",
    kernels={"CPU": _cpu_derivative, "CUDA": _cuda_derivative}, fake=_fake_derivative, setup_context=_keep_derivative, backward=_backward_derivative)
