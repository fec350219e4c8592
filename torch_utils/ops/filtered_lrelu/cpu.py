"""From tensors to filtered_lrelu_cpu.cpp: float32 with separable filters."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from torch_utils.ops import backends
from torch_utils.ops.filtered_lrelu.plain import Axis, both_ways
from torch_utils.ops.filtered_lrelu.reference import Settings

ITEMS_PER_THREAD = 4                    # rows are divided until each thread has this many pieces of work ...
LEAST_ROWS = 16                         # ... but into pieces no smaller than this: each repeats work of its neighbours


class Rows(ctypes.Structure):
    """As in filtered_lrelu_cpu.cpp: a band of a matrix, with the same number of entries in each row."""
    _fields_ = [("start", ctypes.c_void_p), ("weight", ctypes.c_void_p),
                *[(name, ctypes.c_int32) for name in ("out", "width", "size", "period", "step", "inner", "inner_end")]]

    @classmethod
    def of(cls, axis: Axis) -> Rows:
        """The matrix of `axis`. Keeps the memory that it points to."""
        taps, size, out, up, down, before = axis
        width = min(-(-len(taps) // up), size)

        def count(n: int) -> Tensor:
            return torch.arange(n, dtype=torch.int64, device="cpu")

        first = count(out) * down - before                                  # where the first tap lies (higher rate)
        start = torch.div(first + up - 1, up, rounding_mode="floor").clamp(0, size - width)
        tap = (start.unsqueeze(1) + count(width)) * up - first.unsqueeze(1)  # [out, width]: which tap meets
        hit = (tap >= 0) & (tap < len(taps))
        rows = cls(out=out, width=width, size=size, period=up, step=down)
        rows.kept = start.to(torch.int32), torch.where(hit, taps[tap.clamp(0, len(taps) - 1)], 0).contiguous()
        rows.start, rows.weight = (tensor.data_ptr() for tensor in rows.kept)
        return rows


class Source(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("h", Rows), ("w", Rows)]


class Job(ctypes.Structure):
    """As in filtered_lrelu_cpu.cpp."""
    _fields_ = [("sources", Source * 2), ("num_sources", ctypes.c_int32),
                ("down_h", Rows), ("down_w", Rows), ("y", ctypes.c_void_p),
                ("N", ctypes.c_int32), ("C", ctypes.c_int32), ("slope", ctypes.c_float), ("clamp", ctypes.c_float),
                ("chunks", ctypes.c_int32)]


def takes(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.numel() > 0 and max(x.shape) < 2 ** 30


def run(library: ctypes.CDLL, x: Tensor, v: Tensor | None, fu: Tensor | None, fd: Tensor | None, b: Tensor | None,
        settings: Settings, transposed: bool) -> Tensor:
    """If v is None: the function. Else its derivative at x along v or, `transposed`, the adjoint. In channels_last."""
    way_up, way_down = both_ways(x, fu, fd, settings, x.dtype)
    back_up, back_down = way_up, way_down
    if transposed:
        back_up, back_down = ([axis.transposed() for axis in way] for way in (way_down, way_up))
    tensors = [t.permute(0, 2, 3, 1).contiguous() for t in (x, v) if t is not None]
    bias = None if b is None else b.contiguous()
    bands = [Rows.of(axis) for axis in (*way_up, *back_up, *(way_down if v is None else back_down))]
    down_h, down_w = bands[4:]
    y = x.new_empty([x.shape[0], down_h.out, down_w.out, x.shape[1]])

    job = Job(num_sources=len(tensors), down_h=down_h, down_w=down_w, y=backends.float_address(y),
              N=x.shape[0], C=x.shape[1], slope=settings.slope, clamp=settings.clamp)
    job.sources[0] = Source(*map(backends.float_address, (tensors[0], bias)), *bands[:2])
    if v is not None:
        job.sources[1] = Source(backends.float_address(tensors[1]), None, *bands[2:4])
    job.chunks = chunks_of(x.shape[0] * -(-x.shape[1] // 16), down_h.out)
    backends.launch_cpu(library, "raycond_filtered_lrelu", job)
    return y.permute(0, 3, 1, 2)


def chunks_of(items: int, rows: int) -> int:
    """The number of pieces into which the rows are divided."""
    wanted = -(-ITEMS_PER_THREAD * torch.get_num_threads() // items)
    return max(1, min(wanted, rows // LEAST_ROWS))
