"""`upfirdn2d` as a registered operator: the kernels of upfirdn2d.cu and upfirdn2d_cpu.cpp, and a derivative that is the operator itself."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torch_utils import custom_ops
from torch_utils.ops import launching, registry
from torch_utils.ops.upfirdn2d import native_cpu, plain
from torch_utils.ops.upfirdn2d.arguments import filter_size, output_size

_FOLDER = Path(__file__).parent
PLUGIN = custom_ops.declare(custom_ops.Plugin("upfirdn2d", (_FOLDER / "upfirdn2d.cu",), launching.headers_of(_FOLDER), (f"-I{launching.COMMON}",),
                                              cpu_sources=(_FOLDER / "upfirdn2d_cpu.cpp",)))

NOT_TAKEN = -1                          # as kNotTaken in choose.cuh


class Args(ctypes.Structure):
    """UpfirdnArgs in upfirdn2d.cuh."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "f", "y")],
        ("x_stride", ctypes.c_int64 * 4), ("y_stride", ctypes.c_int64 * 4),
        ("gain", ctypes.c_double),
        *[(name, ctypes.c_int32) for name in ("n", "c", "ih", "iw", "oh", "ow", "up_x", "up_y", "down_x", "down_y", "pad_x", "pad_y",
                                              "fh", "fw", "flip", "separable", "dtype", "device")],
    ]


def takes(x: torch.Tensor, f: torch.Tensor | None) -> bool:
    """Is the operator defined for this call? Without a filter nothing is left to compute. On CPUs it is defined without native code as well, and its
    derivative is better than that of the plain path, whose second one is a convolution for each channel.
    """
    if f is None or f.device != x.device or x.dtype not in launching.DTYPES or not registry.available():
        return False
    return x.device.type == "cpu" or custom_ops.path("upfirdn2d", x.device.type) == "native"


def upfirdn2d(x: torch.Tensor, f: torch.Tensor, up: tuple[int, int], down: tuple[int, int], padding: tuple[int, int, int, int],
              flip_filter: bool, gain: float) -> torch.Tensor:
    """Same contract as the reference, for calls that it `takes`."""
    return _upfirdn2d(x, f, up, down, padding, flip_filter, gain)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels.

def run(library: ctypes.CDLL, x: torch.Tensor, f: torch.Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int],
        flip_filter: bool, gain: float) -> torch.Tensor:
    """Launches the best variant; a separable filter without one takes two passes."""
    f = f.contiguous()
    y = _empty_result(x, f, up, down, padding)
    pixels = max(x.shape[0] * x.shape[1], *x.shape[2:], *y.shape[2:])
    assert pixels < 2 ** 31, f"x {list(x.shape)}: a single dimension beyond the kernels' 32-bit coordinates"
    fw, fh = filter_size(f)
    args = Args(x.data_ptr(), launching.address(f, torch.float32, x.device), y.data_ptr(),
                (ctypes.c_int64 * 4)(*x.stride()), (ctypes.c_int64 * 4)(*y.stride()), gain,
                *x.shape[:2], *x.shape[2:], *y.shape[2:], *up, *down, padding[0], padding[2], fh, fw, flip_filter, f.ndim == 1,
                launching.DTYPES[x.dtype], launching.index_of(x.device))
    if launching.launch(library, "raycond_upfirdn2d", args, x.device, quiet=(NOT_TAKEN,)) == NOT_TAKEN:
        left, right, top, bottom = padding
        x = run(library, x, f.view(1, -1), (up[0], 1), (down[0], 1), (left, right, 0, 0), flip_filter, math.sqrt(abs(gain)))
        return run(library, x, f.view(-1, 1), (1, up[1]), (1, down[1]), (0, 0, top, bottom), flip_filter, math.copysign(math.sqrt(abs(gain)), gain))
    return y


def _empty_result(x: torch.Tensor, f: torch.Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]) -> torch.Tensor:
    """Uninitialised, in the memory format of x; also the operator's fake kernel."""
    fw, fh = filter_size(f)
    height = output_size(x.shape[2], up[1], down[1], padding[2], padding[3], fh)
    width = output_size(x.shape[3], up[0], down[0], padding[0], padding[1], fw)
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty([*x.shape[:2], height, width], dtype=x.dtype, device=x.device, memory_format=memory_format)


def _cuda(x: torch.Tensor, f: torch.Tensor, *settings: Any) -> torch.Tensor:
    return run(custom_ops.library("upfirdn2d"), x, f, *settings)


def _cpu(x: torch.Tensor, f: torch.Tensor, up: list[int], down: list[int], padding: list[int], flip_filter: bool, gain: float) -> torch.Tensor:
    y = _empty_result(x, f, up, down, padding)
    if y.numel() == 0:                      # PyTorch's convolutions return views then, which no operator may
        return y
    if native_cpu.takes(x, f) and custom_ops.path("upfirdn2d", "cpu") == "native":
        return native_cpu.run(custom_ops.library("upfirdn2d", "cpu"), x, f, up, down, padding, flip_filter, gain, y)
    found = plain.upfirdn2d(x, f, tuple(up), tuple(down), tuple(padding), flip_filter, gain)
    return found if found.stride() == y.stride() else y.copy_(found)


# ---------------------------------------------------------------------------------------------------------------------
# Derivative: the transposed map swaps up and down, reverses the taps and pads by what the filter reaches beyond.

def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, f, *ctx.settings = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(f)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple:
    (f,) = ctx.saved_tensors
    up, down, padding, flip_filter, gain = ctx.settings
    fw, fh = filter_size(f)
    padding = [*_transposed(ctx.size[1], dy.shape[3], up[0], down[0], padding[0], fw),
               *_transposed(ctx.size[0], dy.shape[2], up[1], down[1], padding[2], fh)]
    return _upfirdn2d(dy, f, down, up, padding, not flip_filter, gain), *[None] * 6


def _transposed(size: int, out_size: int, up: int, down: int, before: int, taps: int) -> tuple[int, int]:
    """The padding along one axis by which `out_size` samples become `size` again."""
    return taps - 1 - before, (size - 1) * up + 1 + before - out_size * down


_upfirdn2d = registry.register(
    "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, SymInt[] padding, bool flip_filter, float gain) -> Tensor",
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=lambda x, f, up, down, padding, flip_filter, gain: _empty_result(x, f, up, down, padding),
    setup_context=_keep, backward=_backward)
