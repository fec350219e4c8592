"""`bias_act` on CPUs: the C++ kernels of bias_act_cpu.cpp and the registered operators made of them.

They take float32 in channels_last and the piecewise linear activations. With these, y is linear in x, noise, b and
scale as long as no sign changes. So three operators serve derivatives of every order:

- the function,           y = clamp(gain * act(x * scale + noise + b));
- its directional change, act'(y) * (v * scale + x * v_scale + v_noise + v_b);
- its gradients, with g = act'(y) * dy:  dx = g * scale,  d_scale = sum of g * x,  d_noise = sum of g,  db = sum of g.

The second and the third are transposes of each other: each is the other's derivative in its directions. The second
also depends on x and scale. That derivative is the third again, with the directions in the place of x and scale. The
result y stands for the signs; all derivatives in it are zero.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_utils import custom_ops
from torch_utils.ops import backends
from torch_utils.ops.bias_act.reference import Settings

SLOPES = {"linear": lambda alpha: 1.0, "relu": lambda alpha: 0.0, "lrelu": lambda alpha: alpha}     # for negative x
LEAST_CHANNELS = 16                     # one vector
LEAST_ELEMENTS = 1 << 17                # below, the call costs more than it saves in passes over memory

MaybeTensor = Tensor | None


def takes(x: Tensor, settings: Settings) -> bool:
    """Is the native path defined for this call, and faster?"""
    dim, act, alpha, gain, _ = settings
    return (x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4 and dim == 1
            and act in SLOPES and alpha >= 0 and gain > 0
            and x.shape[1] >= LEAST_CHANNELS and x.numel() >= LEAST_ELEMENTS
            and x.is_contiguous(memory_format=torch.channels_last))


def bias_act(x: Tensor, b: MaybeTensor, scale: MaybeTensor, noise: MaybeTensor, settings: Settings,
             inplace: bool) -> Tensor:
    """clamp(gain * act(x * scale + noise + b)), for calls that this module `takes`.

    `inplace` overwrites x, unless autograd records the call.
    """
    numbers = SLOPES[settings.act](settings.alpha), settings.gain, settings.clamp
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, b, scale, noise))
    if inplace and not recorded:
        _function_(x, b, scale, noise, *numbers)
        x[:0].zero_()                   # counts as a change, so that autograd refuses what it kept of x before
        return x
    return _function(x, b, scale, noise, *numbers)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels. `numbers` = slope, gain, clamp; a negative clamp means no clamping.

class Job(ctypes.Structure):
    """As in bias_act_cpu.cpp."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("v", "x", "y", "scale", "v_scale", "noise", "bias", "out",
                                               "d_scale", "d_noise", "d_bias")],
        *[(name, ctypes.c_int64) for name in ("N", "P", "C", "noise_step")],
        *[(name, ctypes.c_float) for name in ("slope", "gain", "limit")],
    ]


def _run(x: Tensor, b: MaybeTensor, scale: MaybeTensor, noise: MaybeTensor, *numbers: float,
         out: MaybeTensor = None) -> Tensor:
    """The function. `out` may be x itself; None: a new tensor."""
    v = _channels_last(x)
    out = _empty_like(v) if out is None else out
    _launch("raycond_bias_act", out, numbers, v=v, scale=_rows(scale), noise=_planes(noise, x), bias=_rows(b), out=out)
    return out


def _run_in_place(x: Tensor, b: MaybeTensor, scale: MaybeTensor, noise: MaybeTensor, *numbers: float) -> None:
    _run(x, b, scale, noise, *numbers, out=x)


def _run_along(v: MaybeTensor, v_b: MaybeTensor, v_scale: MaybeTensor, v_noise: MaybeTensor, x: MaybeTensor,
               y: MaybeTensor, scale: MaybeTensor, size: list[int], *numbers: float) -> Tensor:
    """The change of y [size] as x, b, scale and noise change by v, v_b, v_scale and v_noise (None: not at all)."""
    out = _empty((v, v_b, v_scale, v_noise), size)
    _launch("raycond_bias_act_along", out, numbers, v=_channels_last(v), x=_channels_last(x), y=_channels_last(y),
            scale=_rows(scale), v_scale=_rows(v_scale), noise=_planes(v_noise, out), bias=_rows(v_b), out=out)
    return out


def _run_back(dy: Tensor, x: MaybeTensor, y: MaybeTensor, scale: MaybeTensor, slope: float, gain: float, clamp: float,
              wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, b, scale and noise [N, 1, H, W]; [0] for each that is not `wanted`."""
    results = _like_inputs(dy, wanted)
    dx, db, d_scale, d_noise = (out if use else None for out, use in zip(results, wanted))
    _launch("raycond_bias_act_back", dy, (slope, gain, clamp), v=_channels_last(dy), y=_channels_last(y),
            x=_channels_last(x) if wanted[2] else None, scale=_rows(scale),
            out=dx, d_bias=db, d_scale=d_scale, d_noise=d_noise)
    return results


def _launch(function: str, like: Tensor, numbers: Sequence[float], **tensors: MaybeTensor) -> None:
    """`like` has the shape of y; `tensors` are the fields of Job."""
    N, C, H, W = like.shape
    if like.numel() == 0:
        for name in ("d_bias", "d_scale", "d_noise"):
            if tensors.get(name) is not None:
                tensors[name].zero_()
        return
    noise = tensors.get("noise")
    slope, gain, clamp = numbers
    job = Job(**{name: backends.float_address(tensor) for name, tensor in tensors.items()}, N=N, P=H * W, C=C,
              noise_step=0 if noise is None or noise.shape[0] == 1 else H * W, slope=slope, gain=gain,
              limit=math.nan if clamp < 0 else clamp)
    backends.launch_cpu(custom_ops.library("bias_act", "cpu"), function, job)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _empty(tensors: Sequence[MaybeTensor], size: Sequence[int]) -> Tensor:
    """Uninitialised, with dtype and device of the first tensor that is not None."""
    model = next(tensor for tensor in tensors if tensor is not None)
    return torch.empty(size, dtype=model.dtype, device=model.device, memory_format=torch.channels_last)


def _like_inputs(dy: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised gradients of x, b, scale and noise; [0] for each that is not wanted."""
    N, C, H, W = dy.shape
    shapes = zip(([C], [N, C], [N, 1, H, W]), wanted[1:])
    others = [dy.new_empty(shape if use else [0]) for shape, use in shapes]
    return _empty_like(dy) if wanted[0] else dy.new_empty([0]), *others


def _channels_last(x: MaybeTensor) -> MaybeTensor:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _rows(x: MaybeTensor) -> MaybeTensor:
    return None if x is None else x.contiguous()


def _planes(noise: MaybeTensor, x: Tensor) -> MaybeTensor:
    """Noise that broadcasts to x, as [N or 1, H, W]."""
    return None if noise is None else noise.reshape([-1, *x.shape[2:]]).contiguous()


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives of the function.

def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, b, scale, noise, *ctx.numbers = inputs
    slope, _, clamp = ctx.numbers
    ctx.noise_shape = None if noise is None else noise.shape
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, None if slope == 1 and clamp < 0 else output, scale)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    wanted = list(ctx.needs_input_grad[:4])
    gradients = _gradients(dy, *ctx.saved_tensors, *ctx.numbers, wanted)
    return *_presented(gradients, wanted, ctx.noise_shape), *[None] * 3


def _presented(gradients: tuple, wanted: list[bool], noise_shape: torch.Size | None) -> list[MaybeTensor]:
    """None for what is not wanted; the gradient of the noise in the noise's shape."""
    dx, db, d_scale, d_noise = (gradient if use else None for gradient, use in zip(gradients, wanted))
    return [dx, db, d_scale, None if d_noise is None else d_noise.sum_to_size(noise_shape)]


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives of its gradients.

def _keep_gradients(ctx: Any, inputs: tuple, output: tuple) -> None:
    dy, x, y, scale, *ctx.numbers, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.size = dy.shape
    ctx.save_for_backward(dy if ctx.needs_input_grad[1] or ctx.needs_input_grad[3] else None, x, y, scale)


def _backward_gradients(ctx: Any, *directions: MaybeTensor) -> tuple:
    """`directions`: the gradients of dx, db, d_scale and d_noise."""
    dy, x, y, scale = ctx.saved_tensors
    v, v_b, v_scale, v_noise = (direction if use else None for direction, use in zip(directions, ctx.wanted))
    d_dy = None
    if ctx.needs_input_grad[0] and any(direction is not None for direction in (v, v_b, v_scale, v_noise)):
        d_dy = _along(v, v_b, v_scale, v_noise, x, y, scale, ctx.size, *ctx.numbers)
    dx, d_scale = _in_factors(ctx, dy, v, v_scale, y, ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    return d_dy, dx, _zeros(y, ctx.needs_input_grad[2]), d_scale, *[None] * 4


def _in_factors(ctx: Any, g: MaybeTensor, v: MaybeTensor, v_scale: MaybeTensor, y: MaybeTensor, of_x: bool,
                of_scale: bool) -> tuple[MaybeTensor, MaybeTensor]:
    """The gradients of x and scale in the sum of act'(y) * g * (v * scale + x * v_scale)."""
    wanted = [of_x and v_scale is not None, False, of_scale and v is not None, False]
    if not any(wanted):
        return None, None
    dx, _, d_scale, _ = _gradients(g, v, y, v_scale, *ctx.numbers, wanted)
    return dx if wanted[0] else None, d_scale if wanted[2] else None


def _zeros(y: MaybeTensor, wanted: bool) -> MaybeTensor:
    return y.new_zeros([]).expand_as(y) if wanted else None


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives of its change along directions.

def _keep_along(ctx: Any, inputs: tuple, output: Tensor) -> None:
    v, v_b, v_scale, v_noise, x, y, scale, _, *ctx.numbers = inputs
    ctx.noise_shape = None if v_noise is None else v_noise.shape
    ctx.save_for_backward(v, v_scale, x, y, scale)


def _backward_along(ctx: Any, dy: Tensor) -> tuple:
    v, v_scale, x, y, scale = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:4])
    gradients = _gradients(dy, x, y, scale, *ctx.numbers, wanted) if any(wanted) else (None,) * 4
    dx, d_scale = _in_factors(ctx, dy, v, v_scale, y, ctx.needs_input_grad[4], ctx.needs_input_grad[6])
    presented = _presented(gradients, wanted, ctx.noise_shape)
    return *presented, dx, _zeros(y, ctx.needs_input_grad[5]), d_scale, *[None] * 4


_NUMBERS = "float slope, float gain, float clamp"

_function = backends.register(
    f"bias_act_cpu(Tensor x, Tensor? b, Tensor? scale, Tensor? noise, {_NUMBERS}) -> Tensor",
    kernels={"CPU": _run},
    fake=lambda x, *others: _empty_like(x),
    setup_context=_keep, backward=_backward)

_function_ = backends.register(
    f"bias_act_cpu_(Tensor(a!) x, Tensor? b, Tensor? scale, Tensor? noise, {_NUMBERS}) -> ()",
    kernels={"CPU": _run_in_place},
    fake=lambda x, *others: None)

_gradients = backends.register(
    f"bias_act_cpu_gradients(Tensor dy, Tensor? x, Tensor? y, Tensor? scale, {_NUMBERS}, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    kernels={"CPU": _run_back},
    fake=lambda dy, x, y, scale, slope, gain, clamp, wanted: _like_inputs(dy, wanted),
    setup_context=_keep_gradients, backward=_backward_gradients)

_along = backends.register(
    "bias_act_cpu_along(Tensor? v, Tensor? v_b, Tensor? v_scale, Tensor? v_noise, Tensor? x, Tensor? y, Tensor? scale, "
    f"SymInt[] size, {_NUMBERS}) -> Tensor",
    kernels={"CPU": _run_along},
    fake=lambda *args: _empty(args[:7], args[7]),
    setup_context=_keep_along, backward=_backward_along)
