"""From tensors to upfirdn2d_cpu.cpp: float32 in channels_last."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from torch_utils.ops import backends
from torch_utils.ops.upfirdn2d.reference import Settings, filter_size

LEAST_CHANNELS = 16                     # one vector
LEAST_ELEMENTS = 1 << 17                # of x; below, the call costs more than the faster kernel saves


class Job(ctypes.Structure):
    """As in upfirdn2d_cpu.cpp."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "f", "y")],
        *[(name, ctypes.c_int64) for name in ("N", "C", "H", "W", "OH", "OW")],
        *[(name, ctypes.c_int32) for name in ("fh", "fw", "separable", "flip", "up_x", "up_y", "down_x", "down_y",
                                              "pad_x", "pad_y")],
        ("gain", ctypes.c_float),
    ]


def takes(x: Tensor, f: Tensor | None) -> bool:
    """Is the native kernel defined for this call, and faster?"""
    return (f is not None and x.device.type == f.device.type == "cpu" and x.dtype == f.dtype == torch.float32
            and x.shape[1] >= LEAST_CHANNELS and x.numel() >= LEAST_ELEMENTS
            and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())


def run(library: ctypes.CDLL, x: Tensor, f: Tensor, settings: Settings, y: Tensor) -> Tensor:
    """Fills y, which is channels_last and has the size of the result."""
    f = f.contiguous()
    (N, C, H, W), (fw, fh) = x.shape, filter_size(f)
    up, down, padding, flip_filter, gain = settings
    job = Job(*map(backends.float_address, (x, f, y)), N, C, H, W, *y.shape[2:], fh, fw, f.ndim == 1, flip_filter,
              *up, *down, padding[0], padding[2], gain)
    backends.launch_cpu(library, "raycond_upfirdn2d", job)
    return y
