"""A transposed 3x3 convolution of stride 2 and the low-pass filter after it, on CPUs, if no gradients are recorded.

Row 2i + a of the convolution meets only the kernel's rows a, a + 2, ... So it is four small convolutions, one for
each parity of rows and columns. With few channels they cost less than conv_transpose2d. The filter reads their
results in place, so that the image which they make up is never written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import backends
from torch_utils.ops.conv2d_gradfix import operator as strided_conv
from torch_utils.ops.upfirdn2d import plain
from torch_utils.ops.upfirdn2d.reference import Settings

MOST_TAPS = 16
LEAST_ELEMENTS = 1 << 17                # of the result; smaller ones take the usual way


def takes(x: Tensor, w: Tensor, f: Tensor | None, up: int, groups: int, padding: tuple[int, int, int, int]) -> bool:
    """Is this defined for the call, and faster? x [N, I, H, W], w [O, I / groups, kh, kw]; the rest as in upfirdn2d."""
    if x.device.type != "cpu" or not x.dtype == w.dtype == torch.float32:
        return False
    if up != 2 or groups != 1 or tuple(w.shape[2:]) != (3, 3):
        return False
    if backends.choose("up_conv", x, lambda: not torch.is_autocast_enabled("cpu"), always=True) != "operator":
        return False
    if f is None or f.dtype != torch.float32 or f.device != x.device or f.requires_grad or max(f.shape) > MOST_TAPS:
        return False
    if 4 * x.shape[0] * w.shape[0] * x.shape[2] * x.shape[3] < LEAST_ELEMENTS or min(_size(x, f, padding)) < 1:
        return False
    recorded = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    if recorded or strided_conv.takes(x, w.transpose(0, 1), up, 0, groups, transposed=True):    # which is one call
        return False
    return custom_ops.path("up_conv", "cpu") == "native"


def up_conv(
    x:          Tensor,                         # [N, I, H, W], float32.
    w:          Tensor,                         # [O, I, 3, 3], laid down at every second pixel, not flipped.
    f:          Tensor,                         # [n] or [fh, fw]. The filter, as a convolution.
    padding:    tuple[int, int, int, int],      # Left, right, top, bottom: zeros around the convolution's result. Negative: crops.
    gain:       float,                          # Factor of the result.
) -> Tensor:                                    # [N, O, 2H + 1 + top + bottom - (fh - 1), ...], channels_last.
    """upfirdn2d(conv_transpose2d(x, w, stride=2), f, padding=padding, gain=gain), for calls that are taken."""
    return _up_conv(x, w, f, padding, gain)


# ---------------------------------------------------------------------------------------------------------------------

def _size(x: Tensor, f: Tensor, padding: Sequence[int]) -> tuple[int, int]:
    """Height and width of the result."""
    left, right, top, bottom = padding
    fh, fw = f.shape[0], f.shape[-1]
    return 2 * x.shape[2] + 1 + top + bottom - (fh - 1), 2 * x.shape[3] + 1 + left + right - (fw - 1)


def _empty_result(x: Tensor, w: Tensor, f: Tensor, padding: Sequence[int], gain: float) -> Tensor:
    """Uninitialised; also the operator's fake kernel."""
    size = [x.shape[0], w.shape[0], *_size(x, f, padding)]
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _run(x: Tensor, w: Tensor, f: Tensor, padding: list[int], gain: float) -> Tensor:
    y = _empty_result(x, w, f, padding, gain)
    factors = _factors(f)
    if factors is None:
        wide = functional.conv_transpose2d(x, w.transpose(0, 1), stride=2)
        return y.copy_(plain.upfirdn2d(wide, f, Settings((1, 1), (1, 1), tuple(padding), False, gain)))
    library = custom_ops.library("up_conv", "cpu")
    x = x.contiguous(memory_format=torch.channels_last)
    phases = []
    for taps in _split(library, w.contiguous()):
        phase = functional.conv2d(x, taps, padding=(taps.shape[2] - 1, taps.shape[3] - 1))
        phases.append(phase.contiguous(memory_format=torch.channels_last))
    column, row = (taps.flip(0).contiguous() for taps in factors)       # a convolution meets the taps in reverse order
    column = column * gain
    (N, O, height, width), (H, W) = y.shape, x.shape[2:]
    job = _Filtering((ctypes.c_void_p * 4)(*map(backends.float_address, phases)),
                     *map(backends.float_address, (column, row, y)), N, O, (H + 1, H), (W + 1, W), height, width,
                     len(column), len(row), padding[2], padding[0])
    backends.launch_cpu(library, "raycond_filter_phases", job)
    return y


class _Filtering(ctypes.Structure):
    """As in up_conv_cpu.cpp."""
    _fields_ = [("phase", ctypes.c_void_p * 4), *[(name, ctypes.c_void_p) for name in ("column", "row", "y")],
                *[(name, ctypes.c_int64) for name in ("N", "C")],
                *[(name, ctypes.c_int64 * 2) for name in ("H", "W")],
                *[(name, ctypes.c_int64) for name in ("OH", "OW")],
                *[(name, ctypes.c_int32) for name in ("fh", "fw", "pad_y", "pad_x")]]


class _Splitting(ctypes.Structure):
    """As in up_conv_cpu.cpp."""
    _fields_ = [("w", ctypes.c_void_p), ("taps", ctypes.c_void_p * 4), ("O", ctypes.c_int64), ("I", ctypes.c_int64)]


def _split(library: ctypes.CDLL, w: Tensor) -> list[Tensor]:
    """The taps of the four convolutions, as correlations, in channels_last: row parities, in each column parities."""
    O, I = w.shape[:2]
    sizes = [[O, I, 2 - a, 2 - b] for a in range(2) for b in range(2)]
    taps = [torch.empty(size, dtype=w.dtype, device=w.device, memory_format=torch.channels_last) for size in sizes]
    job = _Splitting(backends.float_address(w), (ctypes.c_void_p * 4)(*map(backends.float_address, taps)), O, I)
    backends.launch_cpu(library, "raycond_split_taps", job)
    return taps


def _factors(f: Tensor) -> tuple[Tensor, Tensor] | None:
    """(column, row) whose outer product is the filter. None if it is not separable."""
    if f.ndim == 1:
        return f, f
    total = f.sum()
    if total == 0:
        return None
    column, row = f.sum(dim=1), f.sum(dim=0) / total
    separable = torch.allclose(torch.outer(column, row), f, rtol=0, atol=4e-7 * float(f.abs().max()))
    return (column, row) if separable else None


_up_conv = backends.register(
    "up_conv(Tensor x, Tensor w, Tensor f, SymInt[] padding, float gain) -> Tensor",
    kernels={"CPU": _run}, fake=_empty_result)
