"""`filtered_lrelu` as registered operators: fused kernels, or band matrices without a compiler; and their derivatives.

There are two: the function y(x), and the derivative of y at x. The derivative is linear: it runs along a direction
or, transposed, backwards. In v, each of these two is the derivative of the other; in x, both have zero almost
everywhere. So gradients of every order exist, and a forward pass keeps nothing but its input: what was positive at
the higher rate is computed again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_utils import custom_ops
from torch_utils.ops import backends
from torch_utils.ops.filtered_lrelu import cpu, cuda, plain
from torch_utils.ops.filtered_lrelu.reference import Settings, sizes

WITHOUT_NATIVE = ("cpu", "meta")        # devices on which the operators need no native code


def takes(x: Tensor, fu: Tensor | None, fd: Tensor | None, settings: Settings) -> bool:
    """Are the operators defined for this call? Without any filter they would be a slow `bias_act`."""
    filters = [f for f in (fu, fd) if f is not None]
    defined = all(f.ndim == 1 and f.device == x.device for f in filters) and x.dtype in backends.DTYPES
    return bool(filters) and defined and (x.device.type in WITHOUT_NATIVE or cuda.takes(x, fu, fd, settings))


def filtered_lrelu(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, settings: Settings) -> Tensor:
    """Same contract as the reference, for calls that this module `takes`."""
    return _function(x, fu, fd, b, *settings)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels. `settings` are the fields of Settings; those of the derivative end with `transposed`.

def _fake(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, *settings: Any) -> Tensor:
    return backends.empty_result(x, *sizes(x, fu, fd, Settings(*settings)).result)


def _fake_derivative(x: Tensor, v: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None,
                     *settings: Any) -> Tensor:
    *settings, transposed = settings
    return backends.empty_result(x, *(x.shape[2:] if transposed else sizes(x, fu, fd, Settings(*settings)).result))


def _cpu(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, *settings: Any) -> Tensor:
    if _is_native(x):
        y = cpu.run(custom_ops.library("filtered_lrelu", "cpu"), x, None, fu, fd, b, Settings(*settings), False)
    else:
        y = plain.function(x, fu, fd, b, Settings(*settings))
    return backends.laid_out_as(_fake(x, fu, fd, b, *settings), y)


def _cpu_derivative(x: Tensor, v: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None,
                    *settings: Any) -> Tensor:
    *numbers, transposed = settings
    if _is_native(x):
        y = cpu.run(custom_ops.library("filtered_lrelu", "cpu"), x, v, fu, fd, b, Settings(*numbers), transposed)
    else:
        y = plain.derivative(x, v, fu, fd, b, Settings(*numbers), transposed)
    return backends.laid_out_as(_fake_derivative(x, v, fu, fd, b, *settings), y)


def _is_native(x: Tensor) -> bool:
    return cpu.takes(x) and custom_ops.path("filtered_lrelu", "cpu") == "native"


def _cuda(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, *settings: Any) -> Tensor:
    y = cuda.run(custom_ops.library("filtered_lrelu"), x, None, fu, fd, b, Settings(*settings), False)
    return backends.laid_out_as(_fake(x, fu, fd, b, *settings), y)


def _cuda_derivative(x: Tensor, v: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None,
                     *settings: Any) -> Tensor:
    *numbers, transposed = settings
    y = cuda.run(custom_ops.library("filtered_lrelu"), x, v, fu, fd, b, Settings(*numbers), transposed)
    return backends.laid_out_as(_fake_derivative(x, v, fu, fd, b, *settings), y)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives.

def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, fu, fd, b, *ctx.settings = inputs
    ctx.save_for_backward(x, fu, fd, b)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    x, *others = ctx.saved_tensors
    dx = _derivative(x, dy, *others, *ctx.settings, True)
    db = dx.sum([0, 2, 3]) if ctx.needs_input_grad[3] else None
    return dx if ctx.needs_input_grad[0] else None, None, None, db, *[None] * 7


def _keep_derivative(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, _, fu, fd, b, *ctx.settings, ctx.transposed = inputs
    ctx.save_for_backward(x, fu, fd, b)


def _backward_derivative(ctx: Any, dy: Tensor) -> tuple:
    x, fu, fd, b = ctx.saved_tensors
    dv = _derivative(x, dy, fu, fd, b, *ctx.settings, not ctx.transposed) if ctx.needs_input_grad[1] else None
    dx = x.new_zeros([]).expand_as(x) if ctx.needs_input_grad[0] else None
    db = b.new_zeros([]).expand_as(b) if ctx.needs_input_grad[4] else None
    return dx, dv, None, None, db, *[None] * 8


_SETTINGS = "int up, int down, SymInt[] padding, float gain, float slope, float clamp, bool flip_filter"

_function = backends.register(
    f"filtered_lrelu(Tensor x, Tensor? fu, Tensor? fd, Tensor? b, {_SETTINGS}) -> Tensor",
    kernels={"CPU": _cpu, "CUDA": _cuda}, fake=_fake, setup_context=_keep, backward=_backward)

_derivative = backends.register(
    f"filtered_lrelu_derivative(Tensor x, Tensor v, Tensor? fu, Tensor? fd, Tensor? b, {_SETTINGS}, bool transposed) "
    "-> Tensor",
    kernels={"CPU": _cpu_derivative, "CUDA": _cuda_derivative}, fake=_fake_derivative,
    setup_context=_keep_derivative, backward=_backward_derivative)
