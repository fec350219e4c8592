"""From tensors to bias_act_cpu.cpp: float32 in channels_last, piecewise linear activations."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch

from torch_utils import custom_ops
from torch_utils.ops import launching

SLOPES = {"linear": lambda alpha: 1.0, "relu": lambda alpha: 0.0, "lrelu": lambda alpha: alpha}     # of the negative side
LEAST_CHANNELS = 16                     # one vector
LEAST_ELEMENTS = 1 << 17                # below, calling costs more than the passes over memory that it saves


class Job(ctypes.Structure):
    """As in bias_act_cpu.cpp."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("v", "x", "y", "scale", "v_scale", "noise", "bias", "out", "d_scale", "d_noise", "d_bias")],
        *[(name, ctypes.c_int64) for name in ("N", "P", "C", "noise_step")],
        *[(name, ctypes.c_float) for name in ("slope", "gain", "limit")],
    ]


def takes(x: torch.Tensor, dim: int, act: str, alpha: float, gain: float) -> bool:
    """Is the native path defined for this call, and worth it?"""
    return (x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4 and dim == 1 and act in SLOPES and alpha >= 0 and gain > 0
            and x.shape[1] >= LEAST_CHANNELS and x.numel() >= LEAST_ELEMENTS and x.is_contiguous(memory_format=torch.channels_last))


def empty_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def empty(tensors: Sequence[torch.Tensor | None], size: Sequence[int]) -> torch.Tensor:
    """Uninitialised, of the dtype and device of the first of `tensors` that there is."""
    model = next(tensor for tensor in tensors if tensor is not None)
    return torch.empty(size, dtype=model.dtype, device=model.device, memory_format=torch.channels_last)


def forward(x: torch.Tensor, b: torch.Tensor | None, scale: torch.Tensor | None, noise: torch.Tensor | None, slope: float, gain: float,
            clamp: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """clamp(gain * act(x * scale + noise + b)), into `out` where given, which may be x itself. clamp < 0: none."""
    v = _channels_last(x)
    out = empty_like(v) if out is None else out
    _launch("raycond_bias_act", out, slope, gain, clamp, v=v, scale=_rows(scale), noise=_planes(noise, x), bias=_rows(b), out=out)
    return out


def along(v: torch.Tensor | None, v_b: torch.Tensor | None, v_scale: torch.Tensor | None, v_noise: torch.Tensor | None, x: torch.Tensor | None,
          y: torch.Tensor | None, scale: torch.Tensor | None, size: list[int], slope: float, gain: float, clamp: float) -> torch.Tensor:
    """The change of y, which has that size, as x, b, scale and noise change by v, v_b, v_scale and v_noise (None: not at all)."""
    out = empty((v, v_b, v_scale, v_noise), size)
    _launch("raycond_bias_act_along", out, slope, gain, clamp, v=_channels_last(v), x=_channels_last(x), y=_channels_last(y), scale=_rows(scale),
            v_scale=_rows(v_scale), noise=_planes(v_noise, out), bias=_rows(v_b), out=out)
    return out


def back(dy: torch.Tensor, x: torch.Tensor | None, y: torch.Tensor | None, scale: torch.Tensor | None, slope: float, gain: float, clamp: float,
         wanted: list[bool]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, b, scale and noise [N, 1, H, W] as far as `wanted`, else [0]."""
    dx, db, d_scale, d_noise = results = like_inputs(dy, wanted)
    kept = [out if use else None for out, use in zip(results, wanted)]
    dx, db, d_scale, d_noise = kept
    _launch("raycond_bias_act_back", dy, slope, gain, clamp, v=_channels_last(dy), x=_channels_last(x) if wanted[2] else None, y=_channels_last(y),
            scale=_rows(scale), out=dx, d_bias=db, d_scale=d_scale, d_noise=d_noise)
    return results


def like_inputs(dy: torch.Tensor, wanted: list[bool]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uninitialised gradients of x, b, scale and noise; [0] for those that are not wanted."""
    N, C, H, W = dy.shape
    others = [dy.new_empty(shape if use else [0]) for shape, use in zip(([C], [N, C], [N, 1, H, W]), wanted[1:])]
    return empty_like(dy) if wanted[0] else dy.new_empty([0]), *others


def _launch(function: str, like: torch.Tensor, slope: float, gain: float, clamp: float, **tensors: torch.Tensor | None) -> None:
    N, C, H, W = like.shape
    if like.numel() == 0:
        for name in ("d_bias", "d_scale", "d_noise"):
            if tensors.get(name) is not None:
                tensors[name].zero_()
        return
    noise = tensors.get("noise")
    job = Job(**{name: launching.float_address(tensor) for name, tensor in tensors.items()}, N=N, P=H * W, C=C,
              noise_step=0 if noise is None or noise.shape[0] == 1 else H * W, slope=slope, gain=gain,
              limit=math.nan if clamp < 0 else clamp)
    launching.launch_cpu(custom_ops.library("bias_act", "cpu"), function, job)


def _channels_last(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _rows(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.contiguous()


def _planes(noise: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """[N or 1, H, W] of noise that broadcasts to x."""
    return None if noise is None else noise.reshape([-1, *x.shape[2:]]).contiguous()
