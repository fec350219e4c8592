"""`filtered_lrelu` and its derivative as products with band matrices: the path of a CPU without a C++ compiler, and for double precision.

Along one axis, resampling is a matrix that holds the taps about its diagonal; rows whose results are cropped or dropped do not
exist. With channels last in memory, the pass along H is one product for all columns and channels, and it needs nothing of the
neighbouring columns. So the image is taken a group of columns at a time: up, leaky ReLU and down again, while the group, the only
thing that exists at the higher rate, is in the cache. The derivative recomputes it from x: cheaper than memory is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

GROUP_ELEMENTS = 2 ** 20        # at the higher rate, of one group of columns: a few MB, which the last-level cache holds
BAND_ROWS = 48                  # results per block of a band matrix; fewer multiply fewer zeros, more make better products


class Axis(NamedTuple):
    """Result o is the sum over k of  taps[k] * stuffed[o * down + k - before],  stuffed[i * up] = input i, elsewhere zero."""

    taps:   torch.Tensor        # [n], in the order of a correlation
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
    matrix: torch.Tensor        # [last - first, stop - start]


def bands(axis: Axis) -> list[Band]:
    """The matrix of `axis`, without most of its zeros."""
    taps, size, out, up, down, before = axis
    height = out if out <= 1.5 * BAND_ROWS else BAND_ROWS
    blocks = []
    for first in range(0, out, height):
        last = min(first + height, out)
        start = max(0, -((before - first * down) // up))                                # the first input at or behind the first tap
        stop = min(size, ((last - 1) * down - before + len(taps) - 1) // up + 1)
        rows = torch.arange(first, last, dtype=torch.int64, device="cpu")[:, None] * down - before
        columns = torch.arange(start, max(start, stop), dtype=torch.int64, device="cpu")
        tap = columns * up - rows                                                       # [results, inputs]: which tap meets
        hit = (tap >= 0) & (tap < len(taps))
        blocks.append(Band(first, last, start, max(start, stop), torch.where(hit, taps[tap.clamp(0, len(taps) - 1)], 0)))
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


def resample_h(blocks: list[Band], x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """x [H, columns] -> out [H', columns]."""
    for first, last, start, stop, matrix in blocks:
        torch.mm(matrix, x[start:stop], out=out[first:last])
    return out


def resample_w(blocks: list[Band], x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """x [H, W, C] -> out [H, W', C]."""
    for first, last, start, stop, matrix in blocks:
        torch.bmm(matrix.expand(len(x), *matrix.shape), x[:, start:stop], out=out[:, first:last])
    return out


def through(sources: list[tuple[torch.Tensor, Resampling]], act: Callable[..., torch.Tensor], down: Resampling) -> torch.Tensor:
    """down(act(up(source), ...)), never more at the higher rate than a group of columns. Sources [N, H, W, C], as is the result."""
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
            middle = [resample_h(up.along_h, rows[:, first:last], hold[:, :last - first]) for (_, up), rows, hold in zip(sources, wide, held)]
            resample_h(down.along_h, act(*middle), below[:, first:last])
        resample_w(down.along_w, below.view(down.height, up.width, C), y[n])
    return y


# ---------------------------------------------------------------------------------------------------------------------
# The operator. The size of `gain` is part of the way up, where the leaky ReLU lets it pass, and its sign part of the way down.

def axes(f: torch.Tensor | None, sizes: tuple[tuple[int, int], tuple[int, int]], up: int, down: int, before: tuple[int, int], flip_filter: bool,
         gains: tuple[float, float], dtype: torch.dtype) -> tuple[Axis, Axis]:
    """The maps along H and W; sizes as ((H, H'), (W, W')), before as (top, left), gains as (of H, of W)."""
    taps = torch.ones([1], dtype=dtype, device="cpu") if f is None else f.to(dtype)
    taps = taps if flip_filter else taps.flip(0)
    h, w = (Axis(taps * gain, size, out, up, down, pad) for (size, out), pad, gain in zip(sizes, before, gains))
    return h, w


def both_ways(size: torch.Size, middle: tuple[int, int], result: tuple[int, int], fu: torch.Tensor | None, fd: torch.Tensor | None, up: int, down: int,
              padding: list[int], gain: float, flip_filter: bool, dtype: torch.dtype) -> tuple[tuple[Axis, Axis], tuple[Axis, Axis]]:
    """The maps to the higher rate and from there to the result, each along H and W. `size`: of x; `middle`, `result`: (height, width)."""
    way_up = axes(fu, ((size[2], middle[0]), (size[3], middle[1])), up, 1, (padding[2], padding[0]), flip_filter, (up * abs(gain), up), dtype)
    sign = -1.0 if gain < 0 else 1.0
    return way_up, axes(fd, ((middle[0], result[0]), (middle[1], result[1])), 1, down, (0, 0), flip_filter, (sign, 1.0), dtype)


def _work(x: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """[N, C, H, W] -> contiguous [N, H, W, C] in float32 or float64, b added."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = x.permute(0, 2, 3, 1).to(dtype)
    return (x if b is None else x + b.to(dtype)).contiguous()


def forward(x: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, up: int, down: int, padding: list[int],
            gain: float, slope: float, clamp: float, flip_filter: bool, middle: tuple[int, int], result: tuple[int, int]) -> torch.Tensor:
    """filtered_lrelu for [n] filters or None; clamp < 0: none. `middle`, `result`: (height, width) at the higher rate and of the result."""
    source = _work(x, b)
    way_up, way_down = both_ways(x.shape, middle, result, fu, fd, up, down, padding, gain, flip_filter, source.dtype)

    def act(p: torch.Tensor) -> torch.Tensor:
        functional.leaky_relu_(p, slope)
        return p if clamp < 0 else p.clamp_(-clamp, clamp)

    y = through([(source, Resampling.of(*way_up))], act, Resampling.of(*way_down))
    return y.to(x.dtype).permute(0, 3, 1, 2)


def derivative(x: torch.Tensor, v: torch.Tensor, fu: torch.Tensor | None, fd: torch.Tensor | None, b: torch.Tensor | None, up: int, down: int,
               padding: list[int], gain: float, slope: float, clamp: float, flip_filter: bool, transposed: bool, middle: tuple[int, int],
               result: tuple[int, int]) -> torch.Tensor:
    """The derivative of `forward` at x along v [as x]; `transposed`: its adjoint, for v [as the result]."""
    source, direction = _work(x, b), _work(v)
    way_up, way_down = both_ways(x.shape, middle, result, fu, fd, up, down, padding, gain, flip_filter, source.dtype)
    up_x = Resampling.of(*way_up)

    def act(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        torch.ops.aten.leaky_relu_backward.grad_input(q, p, slope, False, grad_input=q)
        if clamp >= 0:
            torch.ops.aten.hardtanh_backward.grad_input(q, functional.leaky_relu_(p, slope), -clamp, clamp, grad_input=q)
        return q

    if transposed:
        up_v, down_v = (Resampling.of(*(axis.transposed() for axis in way)) for way in (way_down, way_up))
    else:
        up_v, down_v = up_x, Resampling.of(*way_down)
    y = through([(source, up_x), (direction, up_v)], act, down_v)
    return y.to(x.dtype).permute(0, 3, 1, 2)
