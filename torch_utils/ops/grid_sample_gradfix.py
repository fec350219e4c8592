"""Bilinear sampling of images at given points, with second gradients.

Sampling is linear in the image. So its gradient is the adjoint map, and the gradient of that is sampling again.
PyTorch has both maps, but no derivative of the second; here each is a registered operator whose derivative is the
other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_utils.ops import backends

enabled = True                                      # Kept for scripts that set it. Both values give the same result.

_MODE = 0, 0, False                                     # bilinear, zeros, no align_corners, as PyTorch numbers them
_KEYS = ("CPU", "CUDA", "MPS", "XPU")


def grid_sample(
    input:  Tensor,                                     # [N, C, H, W]
    grid:   Tensor,                                     # [N, H', W', 2]: points (x, y), -1 and 1 at the image's outer edges.
) -> Tensor:                                            # [N, C, H', W'], dtype of input.
    """As torch.nn.functional.grid_sample with bilinear interpolation, zeros outside and align_corners=False.

    Differentiable to any order in `input`, once in `grid`. Raises RuntimeError if a second derivative in `grid` is
    needed.
    """
    assert input.ndim == 4, f"input {list(input.shape)}, expected [N, C, H, W]"
    assert grid.ndim == 4 and grid.shape[3] == 2 and grid.shape[0] == input.shape[0], \
        f"grid {list(grid.shape)}, expected [{input.shape[0]}, H, W, 2]"
    grid = grid.to(input.dtype)
    return _sample(input, grid) if backends.available() else _by_gathering(input, grid)


def _by_gathering(input: Tensor, grid: Tensor) -> Tensor:
    """Same contract, with operations that have all derivatives: for torch.func and forward mode. Slower."""
    height, width = input.shape[2:]
    x, y = ((grid[..., axis] + 1) * size / 2 - 0.5 for axis, size in ((0, width), (1, height)))     # [N, H', W'] [px]
    left, top = x.detach().floor(), y.detach().floor()
    total = 0
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        share = (1 - (x - column).abs()) * (1 - (y - row).abs())
        share = share * ((column >= 0) & (column < width) & (row >= 0) & (row < height))
        index = row.long().clamp(0, height - 1) * width + column.long().clamp(0, width - 1)
        index = index.flatten(1).unsqueeze(1).expand(-1, input.shape[1], -1)                        # [N, C, H' W']
        total = total + input.flatten(2).gather(2, index).unflatten(2, grid.shape[1:3]) * share.unsqueeze(1)
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Kernels: PyTorch's own.

def _sample_kernel(input: Tensor, grid: Tensor) -> Tensor:
    return torch.ops.aten.grid_sampler_2d(input, grid, *_MODE).contiguous()


def _adjoint_kernel(dy: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    image = dy.new_zeros([*dy.shape[:2], height, width])        # only its shape matters
    return torch.ops.aten.grid_sampler_2d_backward(dy, image, grid, *_MODE, [True, False])[0].contiguous()


def _move_kernel(dy: Tensor, input: Tensor, grid: Tensor) -> Tensor:
    return torch.ops.aten.grid_sampler_2d_backward(dy, input, grid, *_MODE, [False, True])[1].contiguous()


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives.

def _keep_sample(ctx: Any, inputs: tuple, output: Tensor) -> None:
    input, grid = inputs
    ctx.size = input.shape[2:]
    ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, grid)


def _sample_backward(ctx: Any, dy: Tensor) -> tuple:
    input, grid = ctx.saved_tensors
    d_input = _adjoint(dy, grid, *ctx.size) if ctx.needs_input_grad[0] else None
    d_grid = _move(dy, input, grid) if ctx.needs_input_grad[1] else None
    return d_input, d_grid


def _keep_adjoint(ctx: Any, inputs: tuple, output: Tensor) -> None:
    dy, grid, _, _ = inputs
    ctx.save_for_backward(dy if ctx.needs_input_grad[1] else None, grid)


def _adjoint_backward(ctx: Any, d_image: Tensor) -> tuple:
    dy, grid = ctx.saved_tensors
    d_dy = _sample(d_image, grid) if ctx.needs_input_grad[0] else None
    # <d_image, adjoint(dy)> = <sample(d_image), dy>
    d_grid = _move(dy, d_image, grid) if ctx.needs_input_grad[1] else None
    return d_dy, d_grid, None, None


def _move_backward(ctx: Any, d_grid: Tensor) -> tuple:
    raise RuntimeError("grid_sample: second derivatives in the grid are not available; "
                       "detach the grid, or the gradient that came from it")


_sample = backends.register(
    "grid_sample(Tensor input, Tensor grid) -> Tensor",
    kernels=dict.fromkeys(_KEYS, _sample_kernel),
    fake=lambda input, grid: input.new_empty([*input.shape[:2], *grid.shape[1:3]]),
    setup_context=_keep_sample, backward=_sample_backward)

_adjoint = backends.register(
    "grid_sample_adjoint(Tensor dy, Tensor grid, SymInt height, SymInt width) -> Tensor",
    kernels=dict.fromkeys(_KEYS, _adjoint_kernel),
    fake=lambda dy, grid, height, width: dy.new_empty([*dy.shape[:2], height, width]),
    setup_context=_keep_adjoint, backward=_adjoint_backward)

_move = backends.register(
    "grid_sample_grid_grad(Tensor dy, Tensor input, Tensor grid) -> Tensor",
    kernels=dict.fromkeys(_KEYS, _move_kernel),
    fake=lambda dy, input, grid: torch.empty_like(grid, memory_format=torch.contiguous_format),
    backward=_move_backward)
