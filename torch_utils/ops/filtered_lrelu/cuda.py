"""From tensors to the fused CUDA kernel of filtered_lrelu.cu."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from torch_utils.ops import backends
from torch_utils.ops.filtered_lrelu.reference import Settings, sizes

MOST_TAPS, LARGEST_FACTOR = 32, 4       # up to here a tile fits into shared memory


class Way(ctypes.Structure):
    """As in filtered_lrelu.cuh."""
    _fields_ = [("f", ctypes.c_void_p), ("gain", ctypes.c_double),
                *[(name, ctypes.c_int32) for name in ("taps", "reversed", "factor", "pad_x", "pad_y",
                                                      "height", "width")]]


class Args(ctypes.Structure):
    """FilteredLreluArgs in filtered_lrelu.cuh."""
    _fields_ = [
        *[(name, Way) for name in ("up", "up_v", "down")],
        *[(name, ctypes.c_void_p) for name in ("x", "v", "bias", "y")],
        ("slope", ctypes.c_double), ("clamp", ctypes.c_double), ("planes", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("channels", "height", "width", "dtype", "device")],
    ]


def takes(x: Tensor, fu: Tensor | None, fd: Tensor | None, settings: Settings) -> bool:
    """Is the kernel defined for this call? It leaves double precision, which is for checks, to the plain path."""
    taps = max(1 if f is None else f.shape[0] for f in (fu, fd))
    return x.dtype != torch.float64 and taps <= MOST_TAPS and max(settings.up, settings.down) <= LARGEST_FACTOR


def run(library: ctypes.CDLL, x: Tensor, v: Tensor | None, fu: Tensor | None, fd: Tensor | None, b: Tensor | None,
        settings: Settings, transposed: bool) -> Tensor:
    """If v is None: the function. Else its derivative at x along v or, `transposed`, the adjoint. Contiguous."""
    up, down, padding, gain, slope, clamp, flip_filter = settings
    middle, result = sizes(x, fu, fd, settings)
    x, v, fu, fd, b = (None if t is None else t.contiguous() for t in (x, v, fu, fd, b))
    # The magnitude of the gain passes the leaky ReLU and belongs to the way up, its sign to the way down.
    gains = up ** 2 * abs(gain), -1.0 if gain < 0 else 1.0
    fu_taps, fd_taps = (1 if f is None else f.shape[0] for f in (fu, fd))

    def address(t: Tensor | None, dtype: torch.dtype = x.dtype) -> int | None:
        return backends.address(t, dtype, x.device)

    fu_address, fd_address = address(fu, torch.float32), address(fd, torch.float32)
    way_up = Way(fu_address, gains[0], fu_taps, not flip_filter, up, padding[0], padding[2], *x.shape[2:])
    way_down = Way(fd_address, gains[1], fd_taps, not flip_filter, down, 0, 0, *result)
    up_v = way_up
    if transposed:
        reach = fu_taps - 1 - padding[0], fu_taps - 1 - padding[2]
        up_v = Way(fd_address, gains[1], fd_taps, flip_filter, down, fd_taps - 1, fd_taps - 1, *result)
        way_down = Way(fu_address, gains[0], fu_taps, flip_filter, up, *reach, *x.shape[2:])
    y = x.new_empty([*x.shape[:2], way_down.height, way_down.width])
    args = Args(way_up, up_v, way_down, x.data_ptr(), address(v), address(b), y.data_ptr(), slope, clamp,
                x.shape[0] * x.shape[1], x.shape[1], *middle, backends.DTYPES[x.dtype], backends.index_of(x.device))
    backends.launch(library, "raycond_filtered_lrelu", args, x.device)
    return y
