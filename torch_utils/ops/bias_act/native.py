"""`bias_act` as registered operators: the CUDA kernels of bias_act.cu and the derivatives between them.

Three operators: the function, its gradient, and the derivative of the gradient in its reference tensor. The reference is the
output (or, for swish, the input): autograd leads what arrives there back to x by the first operator's own derivative.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from torch_utils import custom_ops
from torch_utils.ops import launching, registry
from torch_utils.ops.bias_act import derivatives, plain
from torch_utils.ops.bias_act.activations import activation_funcs

_FOLDER = Path(__file__).parent
PLUGIN = custom_ops.declare(custom_ops.Plugin("bias_act", (_FOLDER / "bias_act.cu",), launching.headers_of(_FOLDER), (f"-I{launching.COMMON}",),
                                              cpu_sources=(_FOLDER / "bias_act_cpu.cpp",)))


class Args(ctypes.Structure):
    """BiasActArgs in bias_act.cuh."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("input", "input2", "ref", "bias", "out")],
        *[(name, ctypes.c_int64) for name in ("count", "step", "channels")],
        *[(name, ctypes.c_double) for name in ("alpha", "gain", "clamp")],
        *[(name, ctypes.c_int32) for name in ("dtype", "act", "order", "device")],
    ]


def takes(x: torch.Tensor, b: torch.Tensor | None, act: str, alpha: float, gain: float, clamp: float | None) -> bool:
    """Is the native operator defined for this call, and better than a single operation of PyTorch?"""
    trivial = act == "linear" and clamp is None and (b is None or gain == 1)
    return x.dtype in launching.DTYPES and gain != 0 and alpha >= 0 and not trivial


def bias_act(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float | None) -> torch.Tensor:
    """Same contract as the reference, for calls that it `takes`."""
    return _bias_act(x, b, dim, act, alpha, gain, -1.0 if clamp is None else clamp)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels.

def run(library: ctypes.CDLL, order: int, x: torch.Tensor, x2: torch.Tensor | None, ref: torch.Tensor | None, b: torch.Tensor | None,
        dim: int, act: str, alpha: float, gain: float, clamp: float) -> torch.Tensor:
    """Launches the variant of the given order; x is the incoming gradient from order 1 on. The result has the layout of `ref`, else of x."""
    leader = x if ref is None else ref
    leader = leader if _is_dense(leader) else leader.clone()
    out = torch.empty_like(leader)
    like = [None if t is None else _laid_out_as(t, leader) for t in (x, x2, ref)]
    b = None if b is None else b.contiguous()
    step, channels = (1, 1) if b is None else (max(1, leader.stride(dim)), b.numel())
    def address(x: torch.Tensor | None) -> int | None:
        return launching.address(x, leader.dtype, leader.device)

    args = Args(*map(address, like), address(b), out.data_ptr(), leader.numel(), step, channels, alpha, gain, clamp,
                launching.DTYPES[leader.dtype], activation_funcs[act].cuda_idx, order, launching.index_of(leader.device))
    launching.launch(library, "raycond_bias_act", args, leader.device)
    return out


def _is_dense(x: torch.Tensor) -> bool:
    """Does x fill a stretch of memory without gaps or overlaps, in whatever order of dimensions?"""
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(x.shape, x.stride()) if size > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _laid_out_as(x: torch.Tensor, leader: torch.Tensor) -> torch.Tensor:
    return x if x is leader or x.stride() == leader.stride() else torch.empty_like(leader).copy_(x)


def _cuda(x: torch.Tensor, b: torch.Tensor | None, *settings: Any) -> torch.Tensor:
    return run(custom_ops.library("bias_act"), 0, x, None, None, b, *settings)


def _cuda_grad(dy: torch.Tensor, ref: torch.Tensor, b: torch.Tensor | None, *settings: Any) -> torch.Tensor:
    return run(custom_ops.library("bias_act"), 1, dy, None, ref, b, *settings)


def _cuda_grad2(ddx: torch.Tensor, dy: torch.Tensor, ref: torch.Tensor, b: torch.Tensor | None, *settings: Any) -> torch.Tensor:
    return run(custom_ops.library("bias_act"), 2, ddx, dy, ref, b, *settings)


def _cpu(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float, clamp: float) -> torch.Tensor:
    return torch.empty_like(x).copy_(plain.bias_act(x, b, dim, act, alpha, gain, None if clamp < 0 else clamp))


def _cpu_grad(dy: torch.Tensor, ref: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float, gain: float,
              clamp: float) -> torch.Tensor:
    u, free = _point(ref, b, dim, act, gain, clamp)
    return torch.empty_like(ref).copy_(dy * derivatives.slope_at(act, u, alpha) * gain * free)


def _cpu_grad2(ddx: torch.Tensor, dy: torch.Tensor, ref: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, alpha: float,
               gain: float, clamp: float) -> torch.Tensor:
    u, free = _point(ref, b, dim, act, gain, clamp)
    scale = gain if activation_funcs[act].ref == "x" else 1.0       # else the gain of y and that of y -> u cancel
    return torch.empty_like(ref).copy_(ddx * dy * derivatives.bend_at(act, u, alpha) * scale * free)


def _point(ref: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, gain: float, clamp: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the derivative is taken, and a mask of what is not clamped."""
    if activation_funcs[act].ref == "x":
        u = plain.bias_act(ref, b, dim, "linear", 0.0, 1.0, None)
        y = u * torch.sigmoid(u) * gain
    else:
        u, y = ref / gain, ref
    return u, torch.ones_like(y) if clamp < 0 else (y.abs() < clamp).to(y.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives. `settings` = dim, act, alpha, gain, clamp.

def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, b, *ctx.settings = inputs
    _, act, _, _, clamp = ctx.settings
    if activation_funcs[act].ref == "x":
        ctx.save_for_backward(x, b)
    else:
        ctx.save_for_backward(None if act == "linear" and clamp < 0 else output, None)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple:
    ref, b = ctx.saved_tensors
    dim, _, _, gain, _ = ctx.settings
    dx = dy * gain if ref is None else _bias_act_grad(dy, ref, b, *ctx.settings)
    return dx if ctx.needs_input_grad[0] else None, _sum_to_bias(dx, dim) if ctx.needs_input_grad[1] else None, *[None] * 5


def _keep_grad(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    dy, ref, b, *ctx.settings = inputs
    ctx.curved = activation_funcs[ctx.settings[1]].has_2nd_grad and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
    ctx.save_for_backward(dy if ctx.curved else None, ref, b)


def _backward_grad(ctx: Any, ddx: torch.Tensor) -> tuple:
    dy, ref, b = ctx.saved_tensors
    d_dy = _bias_act_grad(ddx, ref, b, *ctx.settings) if ctx.needs_input_grad[0] else None
    d_ref = _bias_act_grad2(ddx, dy, ref, b, *ctx.settings) if ctx.curved else None
    d_b = _sum_to_bias(d_ref, ctx.settings[0]) if ctx.curved and ctx.needs_input_grad[2] else None
    return d_dy, d_ref, d_b, *[None] * 5


def _backward_grad2(ctx: Any, _: torch.Tensor) -> tuple:
    raise RuntimeError("bias_act: third derivatives are not available in the native operator; use impl='ref' or RAYCOND_OPS=reference")


def _sum_to_bias(dx: torch.Tensor, dim: int) -> torch.Tensor:
    others = [i for i in range(dx.ndim) if i != dim]
    return dx.sum(others) if others else dx.clone()         # an empty list would mean all dimensions


_SETTINGS = "int dim, str act, float alpha, float gain, float clamp"

_bias_act = registry.register(
    f"bias_act(Tensor x, Tensor? b, {_SETTINGS}) -> Tensor",
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=lambda x, b, *settings: torch.empty_like(x),
    setup_context=_keep, backward=_backward)

_bias_act_grad = registry.register(
    f"bias_act_grad(Tensor dy, Tensor ref, Tensor? b, {_SETTINGS}) -> Tensor",
    kernels={"CPU": _cpu_grad, "CUDA": _cuda_grad},
    fake=lambda dy, ref, b, *settings: torch.empty_like(ref),
    setup_context=_keep_grad, backward=_backward_grad)

_bias_act_grad2 = registry.register(
    f"bias_act_grad2(Tensor ddx, Tensor dy, Tensor ref, Tensor? b, {_SETTINGS}) -> Tensor",
    kernels={"CPU": _cpu_grad2, "CUDA": _cuda_grad2},
    fake=lambda ddx, dy, ref, b, *settings: torch.empty_like(ref),
    backward=_backward_grad2)
