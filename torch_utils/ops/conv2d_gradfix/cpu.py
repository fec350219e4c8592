"""Convolutions on the matrix units of CPUs that have them (Intel AMX): from tensors to tile_conv_cpu.cpp.

Float32 in, float32 out, three times as fast as the vector units. Each factor is split into two numbers of 8 bits'
precision, so that products keep about 17 of float32's 24 bits; sums are float32. The result differs from PyTorch's by
some 3e-6 of its size (docs/experiments.md).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_utils import custom_ops
from torch_utils.ops import backends

LEAST_ELEMENTS = 1 << 17                # of x or y, the larger one; smaller calls are left to PyTorch
LEAST_CHANNELS = 32                     # with fewer, splitting costs as much as is saved
MOST_TAPS = 9
STRIDES = (1, 2)


class _Part(ctypes.Structure):
    """As in tile_conv_cpu.cpp."""
    _fields_ = [*[(name, ctypes.c_int64) for name in ("top", "left", "height", "width")],
                *[(name, ctypes.c_int32) for name in ("first_tap", "num_taps")]]


class _Job(ctypes.Structure):
    """As in tile_conv_cpu.cpp."""
    _fields_ = [*[(name, ctypes.c_void_p) for name in ("x", "w", "y")],
                *[(name, ctypes.c_int64) for name in ("N", "H", "W", "I", "YH", "YW", "O", "w_o", "w_i")],
                ("w_tap", ctypes.c_int64 * MOST_TAPS),
                *[(name, ctypes.c_int32 * MOST_TAPS) for name in ("tap_y", "tap_x")],
                *[(name, ctypes.c_int32) for name in ("num_taps", "stride", "y_step", "num_parts")],
                ("parts", _Part * 4)]


class _TapsJob(ctypes.Structure):
    """As TapsJob in tile_conv_cpu.cpp."""
    _fields_ = [*[(name, ctypes.c_void_p) for name in ("x", "dy", "dw")],
                *[(name, ctypes.c_int64) for name in ("N", "H", "W", "I", "YH", "YW", "O")],
                *[(name, ctypes.c_int32) for name in ("kernel_y", "kernel_x", "pad_y", "pad_x", "stride")]]


def takes(x: torch.Size, y: torch.Size, kernel: Sequence[int], stride: int, dtype: torch.dtype) -> bool:
    """Is there such a unit, and is it faster for a convolution from x [N, I, H, W] to y [N, O, H', W'] or back?"""
    if dtype != torch.float32 or stride not in STRIDES or min(kernel) < stride:
        return False
    if not 1 < kernel[0] * kernel[1] <= MOST_TAPS or min(x[1], y[1]) < LEAST_CHANNELS:
        return False
    if max(x.numel(), y.numel()) < LEAST_ELEMENTS or min(x.numel(), y.numel()) == 0:
        return False
    return custom_ops.path("tile_conv", "cpu") == "native" and _unit_is_there()


@functools.cache
def _unit_is_there() -> bool:
    """Asks the system for the unit. Without that, its instructions would end the process."""
    return bool(custom_ops.library("tile_conv", "cpu").raycond_has_tiles())


def down(x: Tensor, w: Tensor, stride: int, padding: Sequence[int]) -> Tensor:
    """conv2d(x, w, stride=stride, padding=padding): x [N, I, H, W], w [O, I, kh, kw], float32. In channels_last."""
    kh, kw = w.shape[2:]
    size = [(side + 2 * pad - k) // stride + 1 for side, pad, k in zip(x.shape[2:], padding, (kh, kw))]
    taps = [(a * w.stride(2) + b * w.stride(3), a - padding[0], b - padding[1]) for a in range(kh) for b in range(kw)]
    return _convolve(x, w, (0, 1), size, stride, 1, [((0, 0), tuple(size), taps)])


def up(y: Tensor, w: Tensor, stride: int, size: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The adjoint of `down` in x, of this (height, width). Each parity of rows and columns meets taps of its own."""
    kh, kw = w.shape[2:]
    parts = []
    for top in range(stride):
        for left in range(stride):
            row, column = top + padding[0], left + padding[1]
            taps = [(a * w.stride(2) + b * w.stride(3), (row - a) // stride, (column - b) // stride)
                    for a in range(row % stride, kh, stride) for b in range(column % stride, kw, stride)]
            extent = tuple(len(range(first, full, stride)) for first, full in zip((top, left), size))
            parts.append(((top, left), extent, taps))
    return _convolve(y, w, (1, 0), size, 1, stride, parts)


def _convolve(x: Tensor, w: Tensor, axes: tuple[int, int], size: Sequence[int], stride: int, y_step: int,
              parts: list[tuple]) -> Tensor:
    """Fills y part by part: ((top, left), (height, width), taps (offset in w, row, column)).

    `axes`: the axes of w along which outputs and inputs lie.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    (N, I, H, W), O = x.shape, w.shape[axes[0]]
    y = torch.empty([N, O, *size], dtype=x.dtype, memory_format=torch.channels_last)
    taps = [tap for _, _, some in parts for tap in some]
    kinds = ctypes.c_int64 * MOST_TAPS, ctypes.c_int32 * MOST_TAPS, ctypes.c_int32 * MOST_TAPS
    job = _Job(*map(backends.float_address, (x, w, y)), N, H, W, I, *size, O, w.stride(axes[0]), w.stride(axes[1]),
               *[kind(*values) for kind, values in zip(kinds, zip(*taps))], len(taps), stride, y_step, len(parts))
    first = 0
    for index, (corner, extent, some) in enumerate(parts):
        job.parts[index] = _Part(*corner, *extent, first, len(some))
        first += len(some)
    backends.launch_cpu(custom_ops.library("tile_conv", "cpu"), "raycond_tile_conv", job)
    return y


def taps(x: Tensor, y: Tensor, stride: int, kernel: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The adjoint of `down` in w, [O, I, kh, kw], for a gradient y [N, O, H', W']."""
    x, y = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, y))
    (N, I, H, W), (_, O, YH, YW) = x.shape, y.shape
    w = torch.empty([O, I, *kernel], dtype=x.dtype)
    job = _TapsJob(*map(backends.float_address, (x, y, w)), N, H, W, I, YH, YW, O, *kernel, *padding, stride)
    backends.launch_cpu(custom_ops.library("tile_conv", "cpu"), "raycond_tile_taps", job)
    return w
