"""From tensors to the CUDA kernels of upfirdn2d.cu."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from torch_utils.ops import backends
from torch_utils.ops.upfirdn2d.reference import Settings, filter_size, result_size

NOT_TAKEN = -1                          # as kNotTaken in choose.cuh


class Args(ctypes.Structure):
    """UpfirdnArgs in upfirdn2d.cuh."""
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("x", "f", "y")],
        ("x_stride", ctypes.c_int64 * 4), ("y_stride", ctypes.c_int64 * 4),
        ("gain", ctypes.c_double),
        *[(name, ctypes.c_int32) for name in ("n", "c", "ih", "iw", "oh", "ow", "up_x", "up_y", "down_x", "down_y",
                                              "pad_x", "pad_y", "fh", "fw", "flip", "separable", "dtype", "device")],
    ]


def run(library: ctypes.CDLL, x: Tensor, f: Tensor, settings: Settings) -> Tensor:
    """Launches the best variant. A separable filter that no variant takes is applied in two passes."""
    f = f.contiguous()
    y = backends.empty_result(x, *result_size(x, f, settings))
    pixels = max(x.shape[0] * x.shape[1], *x.shape[2:], *y.shape[2:])
    assert pixels < 2 ** 31, f"x {list(x.shape)}: a single dimension beyond the kernels' 32-bit coordinates"
    (fw, fh), (up, down, padding, flip_filter, gain) = filter_size(f), settings
    args = Args(x.data_ptr(), backends.address(f, torch.float32, x.device), y.data_ptr(),
                (ctypes.c_int64 * 4)(*x.stride()), (ctypes.c_int64 * 4)(*y.stride()), gain,
                *x.shape[:2], *x.shape[2:], *y.shape[2:], *up, *down, padding[0], padding[2], fh, fw,
                flip_filter, f.ndim == 1, backends.DTYPES[x.dtype], backends.index_of(x.device))
    if backends.launch(library, "raycond_upfirdn2d", args, x.device, quiet=(NOT_TAKEN,)) != NOT_TAKEN:
        return y
    left, right, top, bottom = padding
    root = math.sqrt(abs(gain))
    along_x = Settings((up[0], 1), (down[0], 1), (left, right, 0, 0), flip_filter, root)
    along_y = Settings((1, up[1]), (1, down[1]), (0, 0, top, bottom), flip_filter, math.copysign(root, gain))
    return run(library, run(library, x, f.view(1, -1), along_x), f.view(-1, 1), along_y)
