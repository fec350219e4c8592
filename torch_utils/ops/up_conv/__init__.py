"""A transposed 3x3 convolution of stride 2 and the low-pass filter after it, on CPUs where nothing is recorded for gradients.

Row 2i + a of the convolution meets only the kernel's rows a, a + 2, ...: it is four small convolutions, one for each parity of
rows and columns. They cost less than conv_transpose2d where there are few channels, and the filter can read their results where
they lie, so that the image which they make up is never written.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import launching

__all__ = ["takes", "up_conv"]

_FOLDER = Path(__file__).parent
PLUGIN = custom_ops.declare(custom_ops.Plugin("up_conv", (), launching.headers_of(_FOLDER), (f"-I{launching.COMMON}",),
                                              cpu_sources=(_FOLDER / "up_conv_cpu.cpp",)))
MOST_TAPS = 16
LEAST_ELEMENTS = 1 << 17                # of the result; below, it does not matter


def takes(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor | None, up: int, groups: int) -> bool:
    """Is this defined for the call? `x` [N, I, H, W], `w` [O, I / groups, kh, kw], `f` as of upfirdn2d."""
    if not (x.device.type == "cpu" and x.dtype == torch.float32 and up == 2 and groups == 1 and tuple(w.shape[2:]) == (3, 3)):
        return False
    if 4 * x.shape[0] * w.shape[0] * x.shape[2] * x.shape[3] < LEAST_ELEMENTS:
        return False
    if f is None or max(f.shape) > MOST_TAPS or torch.compiler.is_compiling() or (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)):
        return False
    return custom_ops.mode() != "reference" and custom_ops.path("up_conv", "cpu") == "native" and _factors(f) is not None


def up_conv(
    x:          torch.Tensor,                   # [N, I, H, W], float32.
    w:          torch.Tensor,                   # [O, I, 3, 3], laid down at every second pixel as it is.
    f:          torch.Tensor,                   # [n], or [fh, fw] of rank 1. Convolved with.
    padding:    tuple[int, int, int, int],      # Left, right, top, bottom: zeros around the convolution's result. Negative: crops.
    gain:       float,                          # Factor of the result.
) -> torch.Tensor:                              # [N, O, 2H + 1 + top + bottom - (fh - 1), ...], channels_last.
    """upfirdn2d(conv_transpose2d(x, w, stride=2), f, padding=padding, gain=gain), for calls that this module `takes`."""
    N, _, H, W = x.shape
    O, I = w.shape[:2]
    library = custom_ops.library("up_conv", "cpu")
    phases = [functional.conv2d(x, taps, padding=(taps.shape[2] - 1, taps.shape[3] - 1)).contiguous(memory_format=torch.channels_last)
              for taps in _split(library, w.detach().contiguous())]
    column, row = _factors(f)
    left, right, top, bottom = padding
    height, width = 2 * H + 1 + top + bottom - (len(column) - 1), 2 * W + 1 + left + right - (len(row) - 1)
    y = torch.empty([N, O, height, width], memory_format=torch.channels_last)
    column = (column * gain).flip(0).contiguous()           # a convolution meets the taps in reverse order
    row = row.flip(0).contiguous()
    job = _Filtering((ctypes.c_void_p * 4)(*(phase.data_ptr() for phase in phases)), column.data_ptr(), row.data_ptr(), y.data_ptr(), N, O,
                     (H + 1, H), (W + 1, W), height, width, len(column), len(row), top, left)
    launching.launch_cpu(library, "raycond_filter_phases", job)
    return y


class _Filtering(ctypes.Structure):
    """As in up_conv_cpu.cpp."""
    _fields_ = [("phase", ctypes.c_void_p * 4), *[(name, ctypes.c_void_p) for name in ("column", "row", "y")],
                *[(name, ctypes.c_int64) for name in ("N", "C")], ("H", ctypes.c_int64 * 2), ("W", ctypes.c_int64 * 2),
                *[(name, ctypes.c_int64) for name in ("OH", "OW")], *[(name, ctypes.c_int32) for name in ("fh", "fw", "pad_y", "pad_x")]]


class _Splitting(ctypes.Structure):
    """As in up_conv_cpu.cpp."""
    _fields_ = [("w", ctypes.c_void_p), ("taps", ctypes.c_void_p * 4), ("O", ctypes.c_int64), ("I", ctypes.c_int64)]


def _split(library: ctypes.CDLL, w: torch.Tensor) -> list[torch.Tensor]:
    """The taps of the four convolutions, as correlations, channels_last: for even and odd rows, and columns within."""
    O, I = w.shape[:2]
    taps = [torch.empty([O, I, 2 - a, 2 - b], memory_format=torch.channels_last) for a in range(2) for b in range(2)]
    job = _Splitting(w.data_ptr(), (ctypes.c_void_p * 4)(*(t.data_ptr() for t in taps)), O, I)
    launching.launch_cpu(library, "raycond_split_taps", job)
    return taps


def _factors(f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Column and row of which the filter is the product; None where it is none."""
    if f.ndim == 1:
        return f, f
    total = f.sum()
    if total == 0:
        return None
    column, row = f.sum(dim=1), f.sum(dim=0) / total
    return (column, row) if torch.allclose(torch.outer(column, row), f, rtol=0, atol=4e-7 * float(f.abs().max())) else None
