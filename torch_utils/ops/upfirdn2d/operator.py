"""`upfirdn2d` as a registered operator, whose derivative is the operator itself.

On CPUs it is worth taking without native code too: the second derivative of the plain path is a convolution per
channel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_utils import custom_ops
from torch_utils.ops import backends
from torch_utils.ops.upfirdn2d import cpu, cuda, plain
from torch_utils.ops.upfirdn2d.reference import Settings, filter_size, result_size


def takes(x: Tensor, f: Tensor | None) -> bool:
    """Is the operator defined for this call? Without a filter, nothing is left to compute."""
    return f is not None and f.device == x.device and x.dtype in backends.DTYPES


def upfirdn2d(x: Tensor, f: Tensor, settings: Settings) -> Tensor:
    """Same contract as the reference, for calls that this module `takes`."""
    return _upfirdn2d(x, f, *settings)


def _cuda(x: Tensor, f: Tensor, *settings: Any) -> Tensor:
    return cuda.run(custom_ops.library("upfirdn2d"), x, f, Settings(*settings))


def _cpu(x: Tensor, f: Tensor, up: list[int], down: list[int], padding: list[int], *others: Any) -> Tensor:
    settings = Settings(tuple(up), tuple(down), tuple(padding), *others)
    y = backends.empty_result(x, *result_size(x, f, settings))
    if y.numel() == 0:                      # PyTorch's convolutions return views then, which no operator may
        return y
    if cpu.takes(x, f) and custom_ops.path("upfirdn2d", "cpu") == "native":
        return cpu.run(custom_ops.library("upfirdn2d", "cpu"), x, f, settings, y)
    return backends.laid_out_as(y, plain.upfirdn2d(x, f, settings))


def _fake(x: Tensor, f: Tensor, *settings: Any) -> Tensor:
    return backends.empty_result(x, *result_size(x, f, Settings(*settings)))


# ---------------------------------------------------------------------------------------------------------------------
# Derivative. The transposed map swaps up and down, reverses the taps and pads by what the filter reaches beyond.

def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, f, *settings = inputs
    ctx.settings = Settings(*settings)
    ctx.size = x.shape[2:]
    ctx.save_for_backward(f)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    (f,) = ctx.saved_tensors
    up, down, padding, flip_filter, gain = ctx.settings
    fw, fh = filter_size(f)
    padding = [*_transposed(ctx.size[1], dy.shape[3], up[0], down[0], padding[0], fw),
               *_transposed(ctx.size[0], dy.shape[2], up[1], down[1], padding[2], fh)]
    return _upfirdn2d(dy, f, down, up, padding, not flip_filter, gain), *[None] * 6


def _transposed(size: int, out_size: int, up: int, down: int, before: int, taps: int) -> tuple[int, int]:
    """The padding along one axis by which `out_size` samples become `size` again."""
    return taps - 1 - before, (size - 1) * up + 1 + before - out_size * down


_upfirdn2d = backends.register(
    "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, SymInt[] padding, bool flip_filter, float gain) -> Tensor",
    kernels={"CPU": _cpu, "CUDA": _cuda}, fake=_fake, setup_context=_keep, backward=_backward)
