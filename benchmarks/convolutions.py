"""Bare convolutions: the least time that PyTorch needs for the convolutions of a pass, counted as they are really run.

A convolution connects three tensors: input x, kernels w, output y. Whatever autograd asks for, in a first or a second
backward pass, is one of the three, computed from the other two. `Convolution` says which one, and in which shape. Each
counts with the fastest way to compute it, with operands in the memory format that suits that way: both memory formats;
for x also a plain convolution with turned kernels and, with stride 2, four sub-pixel convolutions; for kernels of one
pixel also a matrix product.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing import timed
from torch.utils._python_dispatch import TorchDispatchMode

from torch_utils.ops import conv2d_gradfix  # noqa: F401    (registers the operators below)

FORMATS = (torch.contiguous_format, torch.channels_last)
SHORT_S = 0.02                          # calls shorter than this are repeated
LEAST_PIXELS = 16                       # of a product that stands for a convolution; cameras make smaller ones
LARGEST_KERNEL = 3                      # of the networks here; larger: an output's gradient in the kernel's place

Shape = tuple[int, int, int, int]


class Convolution(NamedTuple):
    """One of x, w, y from the other two, where y = conv2d(x, w, stride, padding)."""

    wanted: str                         # "x", "w" or "y"
    x: Shape                            # [N, I, H, W]
    w: Shape                            # [O, I, kh, kw]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)   # (rows, columns)
    dtype: torch.dtype = torch.float32

    @property
    def y(self) -> Shape:
        """[N, O, H', W']"""
        (N, _, *size), (O, _, *kernel) = self.x, self.w
        return (N, O, *((side + 2 * pad - k) // self.stride + 1 for side, k, pad in zip(size, kernel, self.padding)))

    @property
    def flops(self) -> int:
        """Multiplications and additions, two for each pair; the same for all three."""
        O, I, kh, kw = self.w
        N, _, height, width = self.y
        return 2 * N * O * I * kh * kw * height * width


def transposed(y: Shape, outputs: int, kernel: int, stride: int, dtype: torch.dtype = torch.float32) -> Convolution:
    """The transposed convolution that makes [N, outputs, (H - 1) stride + kernel, ...] of `y` [N, I, H, W]."""
    N, I, *size = y
    x = (N, outputs, *((side - 1) * stride + kernel for side in size))
    return Convolution("x", x, (I, outputs, kernel, kernel), stride, dtype=dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Counting.

class Recorder(TorchDispatchMode):
    """Counts the convolutions that run while it is active, below autograd: forward, backward, second backward passes.

    Convolutions with one channel are FIR filters, which are not the network's own work, and left out. Samples that
    got kernels of their own, as groups of one wide sample, count as samples with shared kernels; so do ToRGB's matrix
    products, whose pixels count as one row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[Convolution] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        aten = torch.ops.aten
        if func is aten.convolution.default:
            x, w, _, stride, padding, dilation, is_transposed, _, groups = args
            if not _is_filter(w, groups):
                self._add(_forward(_shape(x), _shape(w), stride[0], tuple(padding), dilation[0], is_transposed, groups,
                                   x.dtype))
        elif func is aten.convolution_backward.default:
            gradient, x, w, _, stride, padding, _, is_transposed, _, groups, mask = args
            for wanted in () if _is_filter(w, groups) else [name for name, needed in zip("xw", mask) if needed]:
                self._add(_backward(wanted, *map(_shape, (gradient, x, w)), stride[0], tuple(padding), is_transposed,
                                    groups, x.dtype))
        elif func in _STRIDED:
            self._add(_STRIDED[func](*args))
        elif func is aten.bmm.default and args[1].shape[2] >= LEAST_PIXELS:
            self._add(_product(*map(_shape, args), args[0].dtype))
        return func(*args, **(kwargs or {}))

    def _add(self, conv: Convolution) -> None:
        if conv.w[:2] != (1, 1):            # second derivatives ask for gradients of filters, channel by channel
            self.counts[conv] += 1


def _shape(tensor: torch.Tensor) -> Shape:
    return tuple(tensor.shape)


# This project's own operators: (arguments) -> what they compute.

def _down(x: torch.Tensor, w: torch.Tensor, stride: int, padding: Any = (0, 0)) -> Convolution:
    return Convolution("y", _shape(x), _shape(w), stride, tuple(padding), x.dtype)


def _up(y: torch.Tensor, w: torch.Tensor, stride: int, size: Any, padding: Any = (0, 0)) -> Convolution:
    return Convolution("x", (len(y), w.shape[1], *size), _shape(w), stride, tuple(padding), y.dtype)


def _taps(x: torch.Tensor, y: torch.Tensor, stride: int, kernel: Any, padding: Any = (0, 0)) -> Convolution:
    return Convolution("w", _shape(x), (y.shape[1], x.shape[1], *kernel), stride, tuple(padding), x.dtype)


_STRIDED = {
    torch.ops.raycond.strided_conv_down.default: _down,
    torch.ops.raycond.strided_conv_up.default: _up,
    torch.ops.raycond.strided_conv_taps.default: _taps,
}


def _product(left: tuple[int, ...], right: tuple[int, ...], dtype: torch.dtype) -> Convolution:
    """[N, O, I] of a ToRGB layer times pixels [N, I, P], or either's gradient."""
    N, rows, depth = left
    if depth < rows:                                            # sums over the few outputs: the gradient of the pixels
        return Convolution("x", (N, rows, 1, right[2]), (depth, rows, 1, 1), dtype=dtype)
    return Convolution("y", (N, depth, 1, right[2]), (rows, depth, 1, 1), dtype=dtype)


def _is_filter(w: torch.Tensor, groups: int) -> bool:
    """One channel in, one out: FIR resampling, not the network's work."""
    return w.shape[0] == groups and w.shape[1] == 1


def _forward(x: Shape, w: Shape, stride: int, padding: tuple[int, int], dilation: int, is_transposed: bool, groups: int,
             dtype: torch.dtype) -> Convolution:
    x, w = _without_groups(x, w, groups, is_transposed)
    if is_transposed:                                           # its w is [I, O, k, k], its input a convolution's y
        size = [(side - 1) * stride + k - 2 * pad for side, k, pad in zip(x[2:], w[2:], padding)]
        return Convolution("x", (x[0], w[1], *size), w, stride, padding, dtype)
    if max(w[2:]) > LARGEST_KERNEL:                             # second derivatives: w's gradient, by exchanged axes
        (I, N, *size), (O, _, *output) = x, w
        kernel = [side + 2 * pad - (n - 1) * dilation for side, n, pad in zip(size, output, padding)]
        kernel = [min(k, LARGEST_KERNEL) for k in kernel]       # a stride's spare rows at the border are cut off later
        return Convolution("w", (N, I, *size), (O, I, *kernel), dilation, padding, dtype)
    return Convolution("y", x, w, stride, padding, dtype)


def _backward(wanted: str, gradient: Shape, x: Shape, w: Shape, stride: int, padding: tuple[int, int],
              is_transposed: bool, groups: int, dtype: torch.dtype) -> Convolution:
    if is_transposed:                                           # the gradient has the place of x, the input that of y
        gradient, w = _without_groups(gradient, w, groups, False)
        return Convolution(dict(x="y", w="w")[wanted], gradient, w, stride, padding, dtype)
    x, w = _without_groups(x, w, groups, False)
    return Convolution(wanted, x, w, stride, padding, dtype)


def _without_groups(x: Shape, w: Shape, groups: int, is_transposed: bool) -> tuple[Shape, Shape]:
    if groups == 1:
        return x, w
    return (x[0] * groups, x[1] // groups, *x[2:]), (w[0] // groups, *w[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Timing.

class Tensors:
    """Random operands without the time to make them: views of one pool."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pools: dict[torch.dtype, torch.Tensor] = {}

    def get(self, shape: Shape, dtype: torch.dtype, memory_format: torch.memory_format) -> torch.Tensor:
        N, C, H, W = shape
        size = N * C * H * W
        if dtype not in self.pools or self.pools[dtype].numel() < size:
            self.pools[dtype] = torch.randn([max(size, 1 << 20)], device=self.device, dtype=dtype)
        flat = self.pools[dtype][:size]
        return flat.view(N, H, W, C).permute(0, 3, 1, 2) if memory_format == torch.channels_last else flat.view(shape)


def ways(conv: Convolution, tensors: Tensors) -> dict[str, Callable[[], Any]]:
    """The ways to compute it: name -> call."""
    calls: dict[str, Callable[[], Any]] = {}
    for memory_format in FORMATS:
        name = str(memory_format).split(".")[1]

        def make(shape: Shape, fmt: torch.memory_format = memory_format) -> torch.Tensor:
            return tensors.get(shape, conv.dtype, fmt)

        x, w, y = make(conv.x), make(conv.w), make(conv.y)
        if conv.wanted == "y":
            calls[name] = lambda x=x, w=w: F.conv2d(x, w, stride=conv.stride, padding=conv.padding)
            continue
        mask = [conv.wanted == "x", conv.wanted == "w", False]
        calls[f"backward {name}"] = lambda x=x, w=w, y=y, mask=mask: torch.ops.aten.convolution_backward(
            y, x, w, None, [conv.stride] * 2, list(conv.padding), [1, 1], False, [0, 0], 1, mask)
        if conv.wanted == "x":
            calls.update({f"{way} {name}": call for way, call in _input_ways(conv, y, w, make).items()})
    if conv.w[2:] == (1, 1) and conv.stride == 1 and conv.padding == (0, 0):
        calls["product"] = _pointwise(conv, tensors)
    return calls


def _pointwise(conv: Convolution, tensors: Tensors) -> Callable[[], torch.Tensor]:
    """A kernel of one pixel: a matrix product over pixels or channels."""
    O, I = conv.w[:2]
    pixels = conv.x[0] * conv.x[2] * conv.x[3]
    x, w, y = (tensors.get((1, 1, *shape), conv.dtype, torch.contiguous_format)[0, 0]
               for shape in ((pixels, I), (O, I), (pixels, O)))
    return dict(y=lambda: x @ w.t(), x=lambda: y @ w, w=lambda: y.t() @ x)[conv.wanted]


def _input_ways(conv: Convolution, y: torch.Tensor, w: torch.Tensor,
                make: Callable[[Shape], torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """x from y by convolutions: one with turned kernels where nothing is skipped, four sub-pixel ones with stride 2."""
    O, I, kh, kw = conv.w
    if conv.stride == 1:
        turned = make((I, O, kh, kw))
        padding = [kh - 1 - conv.padding[0], kw - 1 - conv.padding[1]]
        return {"turned": lambda: F.conv2d(y, turned, padding=padding)} if min(padding) >= 0 else {}
    calls = {"transposed": lambda: F.conv_transpose2d(y, w, stride=conv.stride, padding=conv.padding)}
    if conv.stride == 2 and conv.padding == (0, 0) and min(kh, kw) >= 2:
        parts = [make((I, O, a, b)) for a in ((kh + 1) // 2, kh // 2) for b in ((kw + 1) // 2, kw // 2)]
        calls["phases"] = lambda: [F.conv2d(y, part, padding=[n - 1 for n in part.shape[2:]]) for part in parts]
    return calls


class BareConvolutions:
    """The best times of a pass's convolutions. What several passes have in common is chosen and kept once."""

    def __init__(self, device: torch.device):
        self.device = device
        self.tensors = Tensors(device)
        self.chosen: dict[Convolution, str] = {}

    def choose(self, conv: Convolution) -> str:
        """Name of the fastest way. On the CPU found with one sample of the batch, to save time."""
        if conv not in self.chosen:
            sample = conv._replace(x=(1, *conv.x[1:])) if self.device.type == "cpu" else conv
            times = {name: self._fastest(call) for name, call in ways(sample, self.tensors).items()}
            self.chosen[conv] = min(times, key=times.__getitem__)
        return self.chosen[conv]

    def seconds(self, counts: collections.Counter[Convolution]) -> float:
        """Of all of them, each as often as it is counted, one after the other; equal ones are run once."""
        return sum(count * self._fastest(ways(conv, self.tensors)[self.choose(conv)]) for conv, count in counts.items())

    def _fastest(self, call: Callable[[], Any]) -> float:
        """Seconds. Short calls, which other work on the machine can stretch many times over, are repeated."""
        on_cpu, first = self.device.type == "cpu", timed(call, self.device)
        if first > SHORT_S and on_cpu:
            return first
        return min(timed(call, self.device, 1 if on_cpu else 5) for _ in range(3))
