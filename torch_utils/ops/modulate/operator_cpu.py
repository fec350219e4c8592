"""`modulate` on CPUs as two registered operators, each of which the other's derivatives are made of.

y = cat(x, a) * s has the gradients dx, da = dy * s, ds = sum of dy * cat(x, a). These are linear in dy, and along (vx, vs, va) they change dy's
gradient by cat(vx, va) * s + cat(x, a) * vs, twice the function again; their derivatives in x, a and s are the gradients' own form with
(vx, vs, va) in the place of (x, s, a).
"""

from __future__ import annotations

from typing import Any

import torch

from torch_utils.ops import registry
from torch_utils.ops.modulate import native_cpu

MaybeTensor = torch.Tensor | None


def modulate(x: torch.Tensor, styles: torch.Tensor, appended: MaybeTensor) -> torch.Tensor:
    """Same contract as the reference, for calls that `native_cpu.takes`."""
    return _function(x, styles, appended)


def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, styles, appended = inputs
    ctx.channels = x.shape[1]
    ctx.appended_shape = None if appended is None else appended.shape
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, styles, appended if ctx.needs_input_grad[1] else None)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple:
    x, styles, appended = ctx.saved_tensors
    return _where_wanted(dy, x, styles, appended, ctx.channels, list(ctx.needs_input_grad), ctx.appended_shape)


def _where_wanted(dy: torch.Tensor, x: MaybeTensor, styles: torch.Tensor, appended: MaybeTensor, channels: int, wanted: list[bool],
                  appended_shape: torch.Size | None) -> tuple[MaybeTensor, MaybeTensor, MaybeTensor]:
    """The gradients of x, styles and `appended`, which has that shape; None for those that are not wanted."""
    if not any(wanted):
        return None, None, None
    gradients = _gradients(dy, x, styles, appended, channels, wanted)
    dx, d_styles, d_appended = (gradient if use else None for gradient, use in zip(gradients, wanted))
    return dx, d_styles, None if d_appended is None else d_appended.sum_to_size(appended_shape)


def _keep_gradients(ctx: Any, inputs: tuple, output: tuple) -> None:
    dy, x, styles, appended, ctx.channels, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.appended_shape = None if appended is None else appended.shape
    ctx.save_for_backward(dy, x, styles, appended)


def _backward_gradients(ctx: Any, *directions: MaybeTensor) -> tuple:
    """`directions` come in as the gradients of those of x, styles and `appended`."""
    dy, x, styles, appended = ctx.saved_tensors
    vx, v_styles, v_appended = (direction if use else None for direction, use in zip(directions, ctx.wanted))
    of_dy, of_x, of_styles, of_appended = ctx.needs_input_grad[:4]
    along_maps = vx is not None or v_appended is not None
    if along_maps and vx is None:
        vx = dy.new_zeros([]).expand(dy.shape[0], ctx.channels, *dy.shape[2:])
    d_dy = None
    if of_dy and along_maps:
        d_dy = _function(vx, styles, v_appended)
    if of_dy and v_styles is not None:
        other = _function(x, v_styles, appended)
        d_dy = other if d_dy is None else d_dy + other
    wanted = [of_x and v_styles is not None, of_styles and along_maps, of_appended and v_styles is not None]
    factors = styles if v_styles is None else v_styles          # not read where they are not wanted
    dx, d_styles, d_appended = _where_wanted(dy, vx, factors, v_appended, ctx.channels, wanted, ctx.appended_shape)
    return d_dy, dx, d_styles, d_appended, None, None


_function = registry.register(
    "modulate_cpu(Tensor x, Tensor styles, Tensor? appended) -> Tensor",
    kernels={"CPU": native_cpu.forward},
    fake=lambda x, styles, appended: native_cpu.empty(x, styles),
    setup_context=_keep, backward=_backward)

_gradients = registry.register(
    "modulate_cpu_gradients(Tensor dy, Tensor? x, Tensor styles, Tensor? appended, SymInt channels, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    kernels={"CPU": native_cpu.back},
    fake=lambda dy, x, styles, appended, channels, wanted: native_cpu.like_inputs(dy, channels, wanted),
    setup_context=_keep_gradients, backward=_backward_gradients)

energies = registry.register(
    "modulate_cpu_energies(Tensor kernels, Tensor squares) -> Tensor",
    kernels={"CPU": native_cpu.energies},
    fake=lambda kernels, squares: squares.new_empty([squares.shape[0], kernels.shape[0]]))
