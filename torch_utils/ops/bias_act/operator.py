"""`bias_act` as registered operators: CUDA kernels, PyTorch's operations on CPUs, and the derivatives between them.

There are three: the function, its gradient, and the derivative of the gradient in `ref`. The reference tensor `ref`
is the output, for swish the input. Autograd leads what arrives at the output back to x by the first operator's own
derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_utils import custom_ops
from torch_utils.ops import backends
from torch_utils.ops.bias_act import cuda, plain
from torch_utils.ops.bias_act.reference import Settings, activation_funcs


def takes(x: Tensor, b: Tensor | None, settings: Settings) -> bool:
    """Is the operator defined for this call, and better than a single operation of PyTorch?"""
    trivial = settings.act == "linear" and settings.clamp < 0 and (b is None or settings.gain == 1)
    return x.dtype in backends.DTYPES and settings.gain != 0 and settings.alpha >= 0 and not trivial


def bias_act(x: Tensor, b: Tensor | None, settings: Settings) -> Tensor:
    """Same contract as the reference, for calls that this module `takes`."""
    return _bias_act(x, b, *settings)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels. No kernel may return its input, nor a view of it.

def _cuda(x: Tensor, b: Tensor | None, *settings: Any) -> Tensor:
    return cuda.run(custom_ops.library("bias_act"), 0, x, None, None, b, Settings(*settings))


def _cuda_grad(dy: Tensor, ref: Tensor, b: Tensor | None, *settings: Any) -> Tensor:
    return cuda.run(custom_ops.library("bias_act"), 1, dy, None, ref, b, Settings(*settings))


def _cuda_grad2(ddx: Tensor, dy: Tensor, ref: Tensor, b: Tensor | None, *settings: Any) -> Tensor:
    return cuda.run(custom_ops.library("bias_act"), 2, ddx, dy, ref, b, Settings(*settings))


def _cpu(x: Tensor, b: Tensor | None, *settings: Any) -> Tensor:
    return torch.empty_like(x).copy_(plain.bias_act(x, b, Settings(*settings)))


def _cpu_grad(dy: Tensor, ref: Tensor, b: Tensor | None, *settings: Any) -> Tensor:
    return torch.empty_like(ref).copy_(plain.gradient(dy, ref, b, Settings(*settings)))


def _cpu_grad2(ddx: Tensor, dy: Tensor, ref: Tensor, b: Tensor | None, *settings: Any) -> Tensor:
    return torch.empty_like(ref).copy_(plain.gradient_in_ref(ddx, dy, ref, b, Settings(*settings)))


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives.

def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, b, *settings = inputs
    settings = ctx.settings = Settings(*settings)
    if activation_funcs[settings.act].ref == "x":
        ctx.save_for_backward(x, b)
    else:
        ctx.save_for_backward(None if settings.act == "linear" and settings.clamp < 0 else output, None)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    ref, b = ctx.saved_tensors
    dx = dy * ctx.settings.gain if ref is None else _bias_act_grad(dy, ref, b, *ctx.settings)
    db = _sum_to_bias(dx, ctx.settings.dim) if ctx.needs_input_grad[1] else None
    return dx if ctx.needs_input_grad[0] else None, db, *[None] * 5


def _keep_grad(ctx: Any, inputs: tuple, output: Tensor) -> None:
    dy, ref, b, *settings = inputs
    settings = ctx.settings = Settings(*settings)
    ctx.curved = activation_funcs[settings.act].has_2nd_grad and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
    ctx.save_for_backward(dy if ctx.curved else None, ref, b)


def _backward_grad(ctx: Any, ddx: Tensor) -> tuple:
    dy, ref, b = ctx.saved_tensors
    d_dy = _bias_act_grad(ddx, ref, b, *ctx.settings) if ctx.needs_input_grad[0] else None
    d_ref = _bias_act_grad2(ddx, dy, ref, b, *ctx.settings) if ctx.curved else None
    d_b = _sum_to_bias(d_ref, ctx.settings.dim) if ctx.curved and ctx.needs_input_grad[2] else None
    return d_dy, d_ref, d_b, *[None] * 5


def _backward_grad2(ctx: Any, _: Tensor) -> tuple:
    raise RuntimeError("bias_act: third derivatives are not available in the native operator; "
                       "use impl='ref' or RAYCOND_OPS=reference")


def _sum_to_bias(dx: Tensor, dim: int) -> Tensor:
    others = [i for i in range(dx.ndim) if i != dim]
    return dx.sum(others) if others else dx.clone()         # an empty list would mean all dimensions


_SETTINGS = "int dim, str act, float alpha, float gain, float clamp"

_bias_act = backends.register(
    f"bias_act(Tensor x, Tensor? b, {_SETTINGS}) -> Tensor",
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=lambda x, b, *settings: torch.empty_like(x),
    setup_context=_keep, backward=_backward)

_bias_act_grad = backends.register(
    f"bias_act_grad(Tensor dy, Tensor ref, Tensor? b, {_SETTINGS}) -> Tensor",
    kernels={"CPU": _cpu_grad, "CUDA": _cuda_grad},
    fake=lambda dy, ref, b, *settings: torch.empty_like(ref),
    setup_context=_keep_grad, backward=_backward_grad)

_bias_act_grad2 = backends.register(
    f"bias_act_grad2(Tensor ddx, Tensor dy, Tensor ref, Tensor? b, {_SETTINGS}) -> Tensor",
    kernels={"CPU": _cpu_grad2, "CUDA": _cuda_grad2},
    fake=lambda ddx, dy, ref, b, *settings: torch.empty_like(ref),
    backward=_backward_grad2)
