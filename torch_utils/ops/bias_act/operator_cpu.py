"""`bias_act` on CPUs as registered operators, whose derivatives are one another.

Piecewise linear activations make y linear in x and noise and b, and in scale, wherever the signs stay. So three operators serve every order:

- the function y = clamp(gain * act(x * scale + noise + b)),
- its change along directions,    act'(y) * (v * scale + x * v_scale + v_noise + v_b),
- its gradients, with g = act'(y) * dy:    dx = g * scale,  d_scale = sum of g * x,  d_noise = sum of g,  db = sum of g.

The second and the third are each other's transposes: each is the other's derivative in its directions. What is left, the derivative of
g * scale * v + g * x * v_scale in x and scale, is the third again with the directions in the place of x and scale. The result y stands for
the signs; in it all derivatives are zero.
"""

from __future__ import annotations

from typing import Any

import torch

from torch_utils.ops import registry
from torch_utils.ops.bias_act import native_cpu

MaybeTensor = torch.Tensor | None


def bias_act(x: torch.Tensor, b: MaybeTensor, act: str, alpha: float, gain: float, clamp: float | None, scale: MaybeTensor, noise: MaybeTensor,
             inplace: bool) -> torch.Tensor:
    """Same contract as the reference, for calls that `native_cpu.takes`. `inplace` overwrites x where autograd records nothing."""
    settings = (native_cpu.SLOPES[act](alpha), gain, -1.0 if clamp is None else clamp)
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, b, scale, noise))
    if inplace and not recorded:
        _function_(x, b, scale, noise, *settings)
        x[:0].zero_()                                       # counts as a change, so that autograd refuses what it kept of x before
        return x
    return _function(x, b, scale, noise, *settings)


# ---------------------------------------------------------------------------------------------------------------------
# The function. `settings` = slope, gain, clamp.

def _overwrite(x: torch.Tensor, b: MaybeTensor, scale: MaybeTensor, noise: MaybeTensor, *settings: float) -> None:
    native_cpu.forward(x, b, scale, noise, *settings, out=x)


def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, b, scale, noise, *ctx.settings = inputs
    slope, _, clamp = ctx.settings
    ctx.noise_shape = None if noise is None else noise.shape
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, None if slope == 1 and clamp < 0 else output, scale)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple:
    wanted = list(ctx.needs_input_grad[:4])
    gradients = _gradients(dy, *ctx.saved_tensors, *ctx.settings, wanted)
    return *_presented(gradients, wanted, ctx.noise_shape), *[None] * 3


def _presented(gradients: tuple, wanted: list[bool], noise_shape: torch.Size | None) -> list[MaybeTensor]:
    """None for what is not wanted; that of the noise in its shape."""
    dx, db, d_scale, d_noise = (gradient if use else None for gradient, use in zip(gradients, wanted))
    return [dx, db, d_scale, None if d_noise is None else d_noise.sum_to_size(noise_shape)]


# ---------------------------------------------------------------------------------------------------------------------
# Its gradients.

def _keep_gradients(ctx: Any, inputs: tuple, output: tuple) -> None:
    dy, x, y, scale, *ctx.settings, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.size = dy.shape
    ctx.save_for_backward(dy if ctx.needs_input_grad[1] or ctx.needs_input_grad[3] else None, x, y, scale)


def _backward_gradients(ctx: Any, *directions: MaybeTensor) -> tuple:
    """`directions` come in as the gradients of dx, db, d_scale, d_noise."""
    dy, x, y, scale = ctx.saved_tensors
    v, v_b, v_scale, v_noise = (direction if use else None for direction, use in zip(directions, ctx.wanted))
    d_dy = None
    if ctx.needs_input_grad[0] and any(direction is not None for direction in (v, v_b, v_scale, v_noise)):
        d_dy = _along(v, v_b, v_scale, v_noise, x, y, scale, ctx.size, *ctx.settings)
    dx, d_scale = _in_factors(ctx, dy, v, v_scale, y, ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    return d_dy, dx, _zeros(y, ctx.needs_input_grad[2]), d_scale, *[None] * 4


def _in_factors(ctx: Any, g: MaybeTensor, v: MaybeTensor, v_scale: MaybeTensor, y: MaybeTensor, of_x: bool, of_scale: bool) -> tuple[MaybeTensor, MaybeTensor]:
    """The gradients of x and scale, which appear as act'(y) * g * (v * scale + x * v_scale) under a sum."""
    wanted = [of_x and v_scale is not None, False, of_scale and v is not None, False]
    if not any(wanted):
        return None, None
    dx, _, d_scale, _ = _gradients(g, v, y, v_scale, *ctx.settings, wanted)
    return dx if wanted[0] else None, d_scale if wanted[2] else None


def _zeros(y: MaybeTensor, wanted: bool) -> MaybeTensor:
    return y.new_zeros([]).expand_as(y) if wanted else None


# ---------------------------------------------------------------------------------------------------------------------
# Its change along directions.

def _keep_along(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    v, v_b, v_scale, v_noise, x, y, scale, _, *ctx.settings = inputs
    ctx.noise_shape = None if v_noise is None else v_noise.shape
    ctx.save_for_backward(v, v_scale, x, y, scale)


def _backward_along(ctx: Any, dy: torch.Tensor) -> tuple:
    v, v_scale, x, y, scale = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:4])
    gradients = _gradients(dy, x, y, scale, *ctx.settings, wanted) if any(wanted) else (None,) * 4
    dx, d_scale = _in_factors(ctx, dy, v, v_scale, y, ctx.needs_input_grad[4], ctx.needs_input_grad[6])
    return *_presented(gradients, wanted, ctx.noise_shape), dx, _zeros(y, ctx.needs_input_grad[5]), d_scale, *[None] * 4


_SETTINGS = "float slope, float gain, float clamp"

_function = registry.register(
    f"bias_act_cpu(Tensor x, Tensor? b, Tensor? scale, Tensor? noise, {_SETTINGS}) -> Tensor",
    kernels={"CPU": native_cpu.forward},
    fake=lambda x, *others: native_cpu.empty_like(x),
    setup_context=_keep, backward=_backward)

_function_ = registry.register(
    f"bias_act_cpu_(Tensor(a!) x, Tensor? b, Tensor? scale, Tensor? noise, {_SETTINGS}) -> ()",
    kernels={"CPU": _overwrite},
    fake=lambda x, *others: None)

_gradients = registry.register(
    f"bias_act_cpu_gradients(Tensor dy, Tensor? x, Tensor? y, Tensor? scale, {_SETTINGS}, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    kernels={"CPU": native_cpu.back},
    fake=lambda dy, x, y, scale, slope, gain, clamp, wanted: native_cpu.like_inputs(dy, wanted),
    setup_context=_keep_gradients, backward=_backward_gradients)

_along = registry.register(
    "bias_act_cpu_along(Tensor? v, Tensor? v_b, Tensor? v_scale, Tensor? v_noise, Tensor? x, Tensor? y, Tensor? scale, SymInt[] size, "
    f"{_SETTINGS}) -> Tensor",
    kernels={"CPU": native_cpu.along},
    fake=lambda *args: native_cpu.empty(args[:7], args[7]),
    setup_context=_keep_along, backward=_backward_along)
