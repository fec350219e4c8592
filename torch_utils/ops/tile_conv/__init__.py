"""Convolutions on the matrix units of CPUs that have them (Intel AMX): float32 in, float32 out, three times as fast as the vector units.

A factor is split into two numbers of 8 bits' precision, so that products keep about 17 of float32's 24 bits; sums are float32. The
result differs from PyTorch's by some 3e-6 of its size (docs/experiments.md). Calls below `LEAST_ELEMENTS`, and CPUs without such units, are left to PyTorch.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from torch_utils import custom_ops
from torch_utils.ops import launching

__all__ = ["down", "takes", "taps", "up"]

_FOLDER = Path(__file__).parent
PLUGIN = custom_ops.declare(custom_ops.Plugin("tile_conv", (), launching.headers_of(_FOLDER), (f"-I{launching.COMMON}",),
                                              cpu_sources=(_FOLDER / "tile_conv_cpu.cpp",)))
LEAST_ELEMENTS = 1 << 17                # of x or y, the larger one; below, networks are computed as ever
LEAST_CHANNELS = 32                     # with fewer, splitting costs as much as is saved
MOST_TAPS = 9
STRIDES = (1, 2)


class _Part(ctypes.Structure):
    """As in tile_conv_cpu.cpp."""
    _fields_ = [*[(name, ctypes.c_int64) for name in ("top", "left", "height", "width")], ("first_tap", ctypes.c_int32), ("num_taps", ctypes.c_int32)]


class _Job(ctypes.Structure):
    """As in tile_conv_cpu.cpp."""
    _fields_ = [*[(name, ctypes.c_void_p) for name in ("x", "w", "y")],
                *[(name, ctypes.c_int64) for name in ("N", "H", "W", "I", "YH", "YW", "O", "w_o", "w_i")],
                ("w_tap", ctypes.c_int64 * MOST_TAPS), ("tap_y", ctypes.c_int32 * MOST_TAPS), ("tap_x", ctypes.c_int32 * MOST_TAPS),
                *[(name, ctypes.c_int32) for name in ("num_taps", "stride", "y_step", "num_parts")], ("parts", _Part * 4)]


class _TapsJob(ctypes.Structure):
    """As TapsJob in tile_conv_cpu.cpp."""
    _fields_ = [*[(name, ctypes.c_void_p) for name in ("x", "dy", "dw")],
                *[(name, ctypes.c_int64) for name in ("N", "H", "W", "I", "YH", "YW", "O")],
                *[(name, ctypes.c_int32) for name in ("kernel_y", "kernel_x", "pad_y", "pad_x", "stride")]]


def takes(x: torch.Size, y: torch.Size, kernel: Sequence[int], stride: int, dtype: torch.dtype) -> bool:
    """Is there such a unit, and is it worth it for a convolution from [N, I, H, W] to [N, O, H', W'] or back?"""
    if dtype != torch.float32 or stride not in STRIDES or not 1 < kernel[0] * kernel[1] <= MOST_TAPS or min(kernel) < stride:
        return False
    if min(x[1], y[1]) < LEAST_CHANNELS or max(x.numel(), y.numel()) < LEAST_ELEMENTS or min(x.numel(), y.numel()) == 0:
        return False
    return custom_ops.mode() != "reference" and custom_ops.path("tile_conv", "cpu") == "native" and _unit_is_there()


@functools.cache
def _unit_is_there() -> bool:
    """Asks the system for it: before, its instructions end the process."""
    return bool(custom_ops.library("tile_conv", "cpu").raycond_has_tiles())


def down(x: torch.Tensor, w: torch.Tensor, stride: int, padding: Sequence[int]) -> torch.Tensor:
    """conv2d(x, w, stride=stride, padding=padding): x [N, I, H, W], w [O, I, kh, kw], float32. Channels_last."""
    kh, kw = w.shape[2:]
    size = [(side + 2 * pad - k) // stride + 1 for side, pad, k in zip(x.shape[2:], padding, (kh, kw))]
    taps = [(a * w.stride(2) + b * w.stride(3), a - padding[0], b - padding[1]) for a in range(kh) for b in range(kw)]
    return _convolve(x, w, (0, 1), size, stride, 1, [((0, 0), tuple(size), taps)])


def up(y: torch.Tensor, w: torch.Tensor, stride: int, padding: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """Its adjoint in x, of that height and width: each parity of rows and columns meets the taps of its own."""
    kh, kw = w.shape[2:]
    parts = []
    for top in range(stride):
        for left in range(stride):
            taps = [(a * w.stride(2) + b * w.stride(3), (top + padding[0] - a) // stride, (left + padding[1] - b) // stride)
                    for a in range((top + padding[0]) % stride, kh, stride) for b in range((left + padding[1]) % stride, kw, stride)]
            parts.append(((top, left), tuple(len(range(first, full, stride)) for first, full in zip((top, left), size)), taps))
    return _convolve(y, w, (1, 0), size, 1, stride, parts)


def _convolve(x: torch.Tensor, w: torch.Tensor, axes: tuple[int, int], size: Sequence[int], stride: int, y_step: int, parts: list[tuple]) -> torch.Tensor:
    """axes: those of w along which outputs and inputs lie. parts: ((top, left), (height, width), taps (offset in w, row, column))."""
    x = x.contiguous(memory_format=torch.channels_last)
    (N, I, H, W), O = x.shape, w.shape[axes[0]]
    y = torch.empty([N, O, *size], dtype=x.dtype, memory_format=torch.channels_last)
    taps = [tap for _, _, some in parts for tap in some]
    job = _Job(launching.float_address(x), launching.float_address(w), launching.float_address(y), N, H, W, I, *size, O, w.stride(axes[0]), w.stride(axes[1]),
               *[kind(*values) for kind, values in zip((ctypes.c_int64 * MOST_TAPS, *[ctypes.c_int32 * MOST_TAPS] * 2), zip(*taps))],
               len(taps), stride, y_step, len(parts))
    first = 0
    for index, (corner, extent, some) in enumerate(parts):
        job.parts[index] = _Part(*corner, *extent, first, len(some))
        first += len(some)
    launching.launch_cpu(custom_ops.library("tile_conv", "cpu"), "raycond_tile_conv", job)
    return y


def taps(x: torch.Tensor, y: torch.Tensor, stride: int, padding: Sequence[int], kernel: Sequence[int]) -> torch.Tensor:
    """Its adjoint in w, [O, I, kh, kw], for a gradient y [N, O, H', W']."""
    x, y = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, y))
    (N, I, H, W), (_, O, YH, YW) = x.shape, y.shape
    w = torch.empty([O, I, *kernel], dtype=x.dtype)
    job = _TapsJob(launching.float_address(x), launching.float_address(y), launching.float_address(w), N, H, W, I, YH, YW, O, *kernel, *padding, stride)
    launching.launch_cpu(custom_ops.library("tile_conv", "cpu"), "raycond_tile_taps", job)
    return w
