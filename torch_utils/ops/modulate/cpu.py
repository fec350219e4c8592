"""`modulate` on CPUs: the C++ kernels of modulate_cpu.cpp (float32, channels_last) and the operators made of them.

The derivatives of two operators consist of these two. y = cat(x, a) * s has the gradients dx, da = dy * s and ds =
sum of dy * cat(x, a). Along (vx, vs, va), the gradient of dy changes by cat(vx, va) * s + cat(x, a) * vs: twice the
function again. The derivatives of the gradients in x, a and s are the gradients' own form, with (vx, vs, va) in the
place of (x, s, a).
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from torch_utils import custom_ops
from torch_utils.ops import backends

LEAST_ELEMENTS = 1 << 17                # below, the call costs more than it saves in passes over memory

MaybeTensor = Tensor | None


def takes(x: Tensor) -> bool:
    """Is the native path defined for this call, and faster?"""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= LEAST_ELEMENTS


def modulate(x: Tensor, styles: Tensor, appended: MaybeTensor) -> Tensor:
    """Same contract as the reference, for calls that this module `takes`."""
    return _function(x, styles, appended)


def energies(kernels: Tensor, squares: Tensor) -> Tensor:
    """Same contract as the reference. Has no derivatives; the squares of all kernels are never in memory."""
    return _energies(kernels, squares)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels.

class Job(ctypes.Structure):
    """As in modulate_cpu.cpp."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "appended", "styles", "dy", "out", "d_styles", "d_appended")],
        *[(name, ctypes.c_int64) for name in ("N", "P", "C", "E", "stride_n", "stride_e", "stride_p")],
    ]


class Energies(ctypes.Structure):
    """As in modulate_cpu.cpp."""
    _fields_ = [*[(name, ctypes.c_void_p) for name in ("kernels", "squares", "out")],
                *[(name, ctypes.c_int64) for name in ("N", "O", "K")]]


def _run(x: Tensor, styles: Tensor, appended: MaybeTensor) -> Tensor:
    """The function. If `appended` is None although `styles` count its channels, these are zero."""
    y = _empty(x, styles)
    x = x.contiguous(memory_format=torch.channels_last)
    _launch("raycond_modulate", x.shape[1], y, appended, x=x, styles=styles.contiguous(), out=y)
    return y


def _run_back(dy: Tensor, x: MaybeTensor, styles: Tensor, appended: MaybeTensor, channels: int,
              wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, styles and (per sample) `appended`; [0] for each that is not `wanted`.

    `channels` are those of x, which is needed for the gradient of styles only.
    """
    dy = dy.contiguous(memory_format=torch.channels_last)
    results = _like_inputs(dy, channels, wanted)
    dx, d_styles, d_appended = (result if use else None for result, use in zip(results, wanted))
    x = x.contiguous(memory_format=torch.channels_last) if wanted[1] else None
    _launch("raycond_modulate_back", channels, dy, appended, x=x, styles=styles.contiguous(), dy=dy,
            out=dx, d_styles=d_styles, d_appended=d_appended)
    return results


def _run_energies(kernels: Tensor, squares: Tensor) -> Tensor:
    kernels, squares = kernels.contiguous(), squares.contiguous()
    out = kernels.new_empty([len(squares), len(kernels)])
    job = Energies(*map(backends.float_address, (kernels, squares)), out.data_ptr(), len(squares), *kernels.shape)
    backends.launch_cpu(custom_ops.library("modulate", "cpu"), "raycond_energies", job)
    return out


def _empty(x: Tensor, styles: Tensor) -> Tensor:
    """The function's result, uninitialised."""
    size = [*styles.shape, *x.shape[2:]]
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _like_inputs(dy: Tensor, channels: int, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised gradients of x, styles and `appended`; [0] for each that is not wanted."""
    N, all_channels, H, W = dy.shape
    dx = dy.new_empty([0])
    if wanted[0]:
        dx = torch.empty([N, channels, H, W], dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)
    d_styles = dy.new_empty([N, all_channels] if wanted[1] else [0])
    return dx, d_styles, dy.new_empty([N, all_channels - channels, H, W] if wanted[2] else [0])


def _launch(function: str, channels: int, like: Tensor, appended: MaybeTensor, **tensors: MaybeTensor) -> None:
    """`like` has the shape of the function's result; `tensors` are fields of Job."""
    N, all_channels, H, W = like.shape
    if like.numel() == 0:
        if tensors.get("d_styles") is not None:
            tensors["d_styles"].zero_()
        return
    strides = (0, 0, 0)
    if appended is not None:
        appended = appended if appended.stride(2) == W * appended.stride(3) else appended.contiguous()
        strides = (appended.stride(0) if appended.shape[0] > 1 else 0, appended.stride(1), appended.stride(3))
    addresses = {name: backends.float_address(tensor) for name, tensor in tensors.items()}
    job = Job(**addresses, appended=backends.float_address(appended), N=N, P=H * W, C=channels,
              E=all_channels - channels, stride_n=strides[0], stride_e=strides[1], stride_p=strides[2])
    backends.launch_cpu(custom_ops.library("modulate", "cpu"), function, job)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives.

def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, styles, appended = inputs
    ctx.channels = x.shape[1]
    ctx.appended_shape = None if appended is None else appended.shape
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, styles, appended if ctx.needs_input_grad[1] else None)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    x, styles, appended = ctx.saved_tensors
    return _where_wanted(dy, x, styles, appended, ctx.channels, list(ctx.needs_input_grad), ctx.appended_shape)


def _where_wanted(dy: Tensor, x: MaybeTensor, styles: Tensor, appended: MaybeTensor, channels: int,
                  wanted: list[bool], shape: torch.Size | None) -> tuple[MaybeTensor, MaybeTensor, MaybeTensor]:
    """The gradients of x, styles and `appended` [shape]; None for each that is not wanted."""
    if not any(wanted):
        return None, None, None
    gradients = _gradients(dy, x, styles, appended, channels, wanted)
    dx, d_styles, d_appended = (gradient if use else None for gradient, use in zip(gradients, wanted))
    return dx, d_styles, None if d_appended is None else d_appended.sum_to_size(shape)


def _keep_gradients(ctx: Any, inputs: tuple, output: tuple) -> None:
    dy, x, styles, appended, ctx.channels, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.appended_shape = None if appended is None else appended.shape
    ctx.save_for_backward(dy, x, styles, appended)


def _backward_gradients(ctx: Any, *directions: MaybeTensor) -> tuple:
    """`directions`: the gradients of dx, d_styles and d_appended."""
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


_function = backends.register(
    "modulate_cpu(Tensor x, Tensor styles, Tensor? appended) -> Tensor",
    kernels={"CPU": _run},
    fake=lambda x, styles, appended: _empty(x, styles),
    setup_context=_keep, backward=_backward)

_gradients = backends.register(
    "modulate_cpu_gradients(Tensor dy, Tensor? x, Tensor styles, Tensor? appended, SymInt channels, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor)",
    kernels={"CPU": _run_back},
    fake=lambda dy, x, styles, appended, channels, wanted: _like_inputs(dy, channels, wanted),
    setup_context=_keep_gradients, backward=_backward_gradients)

_energies = backends.register(
    "modulate_cpu_energies(Tensor kernels, Tensor squares) -> Tensor",
    kernels={"CPU": _run_energies},
    fake=lambda kernels, squares: squares.new_empty([squares.shape[0], kernels.shape[0]]))
