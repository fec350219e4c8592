"""A transposed 3x3 convolution of stride 2 and the low-pass filter after it, on CPUs where nothing is recorded for gradients.

Row 2i + a of the convolution meets only the kernel's rows a, a + 2, ...: it is four small convolutions, one for each parity of
rows and columns. They cost less than conv_transpose2d where there are few channels, and the filter can read their results where
they lie, so that the image which they make up is never written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import launching, registry, strided_conv
from torch_utils.ops.upfirdn2d import plain

__all__ = ["takes", "up_conv"]

_FOLDER = Path(__file__).parent
PLUGIN = custom_ops.declare(custom_ops.Plugin("up_conv", (), launching.headers_of(_FOLDER), (f"-I{launching.COMMON}",),
                                              cpu_sources=(_FOLDER / "up_conv_cpu.cpp",)))
MOST_TAPS = 16
LEAST_ELEMENTS = 1 << 17                # of the result; below, it does not matter


def takes(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor | None, up: int, groups: int, padding: tuple[int, int, int, int]) -> bool:
    """Is this defined for the call, and worth it? `x` [N, I, H, W], `w` [O, I / groups, kh, kw], `f` and `padding` as of upfirdn2d."""
    if not (x.device.type == "cpu" and x.dtype == w.dtype == torch.float32 and up == 2 and groups == 1 and tuple(w.shape[2:]) == (3, 3)):
        return False
    if not registry.available() or torch.is_autocast_enabled("cpu") or 4 * x.shape[0] * w.shape[0] * x.shape[2] * x.shape[3] < LEAST_ELEMENTS:
        return False
    if f is None or f.dtype != torch.float32 or f.device != x.device or f.requires_grad or max(f.shape) > MOST_TAPS or min(_size(x, f, padding)) < 1:
        return False
    recorded = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    if recorded or strided_conv.takes(x, w.transpose(0, 1), up, 0, groups, transposed=True):        # whose four convolutions are one call
        return False
    return custom_ops.mode() != "reference" and custom_ops.path("up_conv", "cpu") == "native"


def up_conv(
    x:          torch.Tensor,                   # [N, I, H, W], float32.
    w:          torch.Tensor,                   # [O, I, 3, 3], laid down at every second pixel as it is.
    f:          torch.Tensor,                   # [n] or [fh, fw]. Convolved with.
    padding:    tuple[int, int, int, int],      # Left, right, top, bottom: zeros around the convolution's result. Negative: crops.
    gain:       float,                          # Factor of the result.
) -> torch.Tensor:                              # [N, O, 2H + 1 + top + bottom - (fh - 1), ...], channels_last.
    """upfirdn2d(conv_transpose2d(x, w, stride=2), f, padding=padding, gain=gain), for calls that this module `takes`."""
    return _up_conv(x, w, f, padding, gain)


# ---------------------------------------------------------------------------------------------------------------------

def _size(x: torch.Tensor, f: torch.Tensor, padding: Sequence[int]) -> tuple[int, int]:
    """Height and width of the result."""
    left, right, top, bottom = padding
    return 2 * x.shape[2] + 1 + top + bottom - (f.shape[0] - 1), 2 * x.shape[3] + 1 + left + right - (f.shape[-1] - 1)


def _empty_result(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor, padding: Sequence[int], gain: float) -> torch.Tensor:
    """Uninitialised; also the operator's fake kernel."""
    return torch.empty([x.shape[0], w.shape[0], *_size(x, f, padding)], dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _run(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor, padding: list[int], gain: float) -> torch.Tensor:
    y = _empty_result(x, w, f, padding, gain)
    factors = _factors(f)
    if factors is None:
        wide = functional.conv_transpose2d(x, w.transpose(0, 1), stride=2)
        return y.copy_(plain.upfirdn2d(wide, f, (1, 1), (1, 1), tuple(padding), False, gain))
    library = custom_ops.library("up_conv", "cpu")
    x = x.contiguous(memory_format=torch.channels_last)
    phases = [functional.conv2d(x, taps, padding=(taps.shape[2] - 1, taps.shape[3] - 1)).contiguous(memory_format=torch.channels_last)
              for taps in _split(library, w.contiguous())]
    column, row = (taps.flip(0).contiguous() for taps in factors)           # a convolution meets the taps in reverse order
    column = column * gain
    (N, O, height, width), (H, W) = y.shape, x.shape[2:]
    job = _Filtering((ctypes.c_void_p * 4)(*map(launching.float_address, phases)), *map(launching.float_address, (column, row, y)), N, O,
                     (H + 1, H), (W + 1, W), height, width, len(column), len(row), padding[2], padding[0])
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
    sizes = [[O, I, 2 - a, 2 - b] for a in range(2) for b in range(2)]
    taps = [torch.empty(size, dtype=w.dtype, device=w.device, memory_format=torch.channels_last) for size in sizes]
    job = _Splitting(launching.float_address(w), (ctypes.c_void_p * 4)(*map(launching.float_address, taps)), O, I)
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


_up_conv = registry.register(
    "up_conv(Tensor x, Tensor w, Tensor f, SymInt[] padding, float gain) -> Tensor",
    kernels={"CPU": _run}, fake=_empty_result)
