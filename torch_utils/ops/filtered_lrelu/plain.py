"""`filtered_lrelu` with PyTorch's operations: as the ops of its parts, and as band matrices.

`filtered_lrelu` runs `upfirdn2d` and `bias_act`, each on its own fastest path.

`function` and `derivative` are kernels of the registered operators: for a CPU without a C++ compiler, and for double
precision. Along one axis, resampling is a matrix that holds the taps about its diagonal; it has no rows for results
that are cropped or dropped. With channels last in memory, the pass along H is one product for all columns and
channels, and needs nothing of the neighbouring columns. So the image is taken a group of columns at a time: up, leaky
ReLU and down again while the group is in the cache. It is the only thing that exists at the higher rate. The
derivative recomputes it from x, which is cheaper than memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu.reference import Settings, sizes
from torch_utils.ops.upfirdn2d import upfirdn2d

GROUP_ELEMENTS = 2 ** 20        # of a group of columns at the higher rate: a few MB, which the last-level cache holds
BAND_ROWS = 48                  # results per block of a matrix: fewer multiply fewer zeros, more make better products


def filtered_lrelu(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, settings: Settings) -> Tensor:
    """Same contract as the reference."""
    up, down, padding, gain, slope, clamp, flip_filter = settings
    x = bias_act(x, b)
    if fu is None and up == 1:
        x = functional.pad(x, padding) if any(padding) else x
    else:
        x = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up ** 2)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=None if clamp < 0 else clamp)
    return x if fd is None and down == 1 else upfirdn2d(x, fd, down=down, flip_filter=flip_filter)


# ---------------------------------------------------------------------------------------------------------------------
# Band matrices.

class Axis(NamedTuple):
    """Result o is the sum over k of taps[k] * stuffed[o * down + k - before]; stuffed[i * up] = input i, else 0."""

    taps:   Tensor              # [n], in the order of a correlation
    size:   int                 # of the input
    out:    int                 # of the result
    up:     int
    down:   int
    before: int

    def transposed(self) -> Axis:
        return Axis(self.taps.flip(0), self.out, self.size, self.down, self.up, len(self.taps) - 1 - self.before)


class Band(NamedTuple):
    """A block of a matrix: results first .. last from inputs start .. stop."""

    first:  int
    last:   int
    start:  int
    stop:   int
    matrix: Tensor              # [last - first, stop - start]


def bands(axis: Axis) -> list[Band]:
    """The matrix of `axis`, without most of its zeros."""
    taps, size, out, up, down, before = axis
    height = out if out <= 1.5 * BAND_ROWS else BAND_ROWS
    blocks = []
    for first in range(0, out, height):
        last = min(first + height, out)
        start = max(0, -((before - first * down) // up))                    # the first input at or behind the first tap
        stop = min(size, ((last - 1) * down - before + len(taps) - 1) // up + 1)
        rows = torch.arange(first, last, dtype=torch.int64, device="cpu")[:, None] * down - before
        columns = torch.arange(start, max(start, stop), dtype=torch.int64, device="cpu")
        tap = columns * up - rows                                           # [results, inputs]: which tap meets
        hit = (tap >= 0) & (tap < len(taps))
        matrix = torch.where(hit, taps[tap.clamp(0, len(taps) - 1)], 0)
        blocks.append(Band(first, last, start, max(start, stop), matrix))
    return blocks


class Resampling(NamedTuple):
    """The linear map along both axes."""

    along_h:    list[Band]
    along_w:    list[Band]
    height:     int             # of the result
    width:      int

    @classmethod
    def of(cls, h: Axis, w: Axis) -> Resampling:
        return cls(bands(h), bands(w), h.out, w.out)


def resample_h(blocks: list[Band], x: Tensor, out: Tensor) -> Tensor:
    """x [H, columns] -> out [H', columns]."""
    for first, last, start, stop, matrix in blocks:
        torch.mm(matrix, x[start:stop], out=out[first:last])
    return out


def resample_w(blocks: list[Band], x: Tensor, out: Tensor) -> Tensor:
    """x [H, W, C] -> out [H, W', C]."""
    for first, last, start, stop, matrix in blocks:
        torch.bmm(matrix.expand(len(x), *matrix.shape), x[:, start:stop], out=out[:, first:last])
    return out


def through(sources: list[tuple[Tensor, Resampling]], act: Callable[..., Tensor], down: Resampling) -> Tensor:
    """down(act(up(source), ...)), a group of columns at a time. Sources and result are [N, H, W, C]."""
    x, up = sources[0]
    N, C = x.shape[0], x.shape[3]
    y = x.new_empty([N, down.height, down.width, C])
    columns = up.width * C
    group = max(1, min(columns, max(512, GROUP_ELEMENTS // up.height // 16 * 16)))
    held = [x.new_empty([up.height, group]) for _ in sources]
    wide = [source.new_empty([source.shape[1], columns]) for source, _ in sources]
    below = x.new_empty([down.height, columns])
    for n in range(N):
        for (source, up), rows in zip(sources, wide):
            resample_w(up.along_w, source[n], rows.view(source.shape[1], up.width, C))
        for first in range(0, columns, group):
            last = min(first + group, columns)
            middle = [resample_h(up.along_h, rows[:, first:last], hold[:, :last - first])
                      for (_, up), rows, hold in zip(sources, wide, held)]
            resample_h(down.along_h, act(*middle), below[:, first:last])
        resample_w(down.along_w, below.view(down.height, up.width, C), y[n])
    return y


# ---------------------------------------------------------------------------------------------------------------------
# The operators' kernels. The magnitude of `gain` is part of the way up, since the leaky ReLU lets it pass; its sign is
# part of the way down.

def both_ways(x: Tensor, fu: Tensor | None, fd: Tensor | None, settings: Settings,
              dtype: torch.dtype) -> tuple[tuple[Axis, Axis], tuple[Axis, Axis]]:
    """The maps from x [N, C, H, W] to the higher rate, and from there to the result. Each: along H, along W."""
    up, down, padding, gain, _, _, flip_filter = settings
    middle, result = sizes(x, fu, fd, settings)

    def taps_of(f: Tensor | None) -> Tensor:
        taps = torch.ones([1], dtype=dtype, device="cpu") if f is None else f.to(dtype)
        return taps if flip_filter else taps.flip(0)

    fu, fd = taps_of(fu), taps_of(fd)
    way_up = (Axis(fu * (up * abs(gain)), x.shape[2], middle[0], up, 1, padding[2]),
              Axis(fu * up, x.shape[3], middle[1], up, 1, padding[0]))
    way_down = (Axis(fd * (-1.0 if gain < 0 else 1.0), middle[0], result[0], 1, down, 0),
                Axis(fd * 1.0, middle[1], result[1], 1, down, 0))
    return way_up, way_down


def _work(x: Tensor, b: Tensor | None = None) -> Tensor:
    """[N, C, H, W] -> contiguous [N, H, W, C] in float32 or float64, b added."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = x.permute(0, 2, 3, 1).to(dtype)
    return (x if b is None else x + b.to(dtype)).contiguous()


def function(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, settings: Settings) -> Tensor:
    """filtered_lrelu for filters [n] or None."""
    source = _work(x, b)
    way_up, way_down = both_ways(x, fu, fd, settings, source.dtype)

    def act(p: Tensor) -> Tensor:
        functional.leaky_relu_(p, settings.slope)
        return p if settings.clamp < 0 else p.clamp_(-settings.clamp, settings.clamp)

    y = through([(source, Resampling.of(*way_up))], act, Resampling.of(*way_down))
    return y.to(x.dtype).permute(0, 3, 1, 2)


def derivative(x: Tensor, v: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None, settings: Settings,
               transposed: bool) -> Tensor:
    """The derivative of `function` at x along v [as x]. `transposed`: its adjoint, for v [as the result]."""
    slope, clamp = settings.slope, settings.clamp
    source, direction = _work(x, b), _work(v)
    way_up, way_down = both_ways(x, fu, fd, settings, source.dtype)
    up_x = Resampling.of(*way_up)

    def act(p: Tensor, q: Tensor) -> Tensor:
        aten = torch.ops.aten
        aten.leaky_relu_backward.grad_input(q, p, slope, False, grad_input=q)
        if clamp >= 0:
            aten.hardtanh_backward.grad_input(q, functional.leaky_relu_(p, slope), -clamp, clamp, grad_input=q)
        return q

    if transposed:
        up_v, down_v = (Resampling.of(*(axis.transposed() for axis in way)) for way in (way_down, way_up))
    else:
        up_v, down_v = up_x, Resampling.of(*way_down)
    y = through([(source, up_x), (direction, up_v)], act, down_v)
    return y.to(x.dtype).permute(0, 3, 1, 2)
