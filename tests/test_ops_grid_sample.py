"""grid_sample: equal to PyTorch's, and differentiable twice in the image."""

import numpy as np
import pytest
import torch
from helpers import assert_close_rel
from torch.nn import functional

from torch_utils.ops import grid_sample_gradfix


def randn(*shape, seed=0, scale=1.0):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape) * scale)


@pytest.mark.parametrize("size", [(2, 3, 5, 7), (1, 1, 1, 1), (0, 2, 4, 4)])
def test_equals_pytorch(size):
    """Points inside, on the edge and far outside."""
    results = []
    for fn in (lambda x, grid: functional.grid_sample(x, grid, align_corners=False), grid_sample_gradfix.grid_sample):
        x, grid = randn(*size).requires_grad_(), randn(size[0], 6, 4, 2, seed=1, scale=1.5).requires_grad_()
        y = fn(x, grid)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, grid))))
    for what, expected, actual in zip(("y", "dx", "dgrid"), *results):
        assert_close_rel(actual, expected, 1e-12, what)


def test_gradients():
    x, grid = randn(2, 2, 4, 5).requires_grad_(), randn(2, 3, 3, 2, seed=1, scale=0.6).requires_grad_()
    assert torch.autograd.gradcheck(grid_sample_gradfix.grid_sample, (x, grid))
    points = grid.detach()
    assert torch.autograd.gradgradcheck(lambda x: grid_sample_gradfix.grid_sample(x, points), (x,))


def test_second_gradient_reaches_parameters_before_the_sampling():
    """As in R1 on an augmented image: a penalty on the gradient at the image, differentiated in what comes after it."""
    x, w = randn(1, 1, 6, 6).requires_grad_(), randn(1, seed=2).requires_grad_()
    grid = randn(1, 6, 6, 2, seed=1, scale=0.5)
    y = (w * grid_sample_gradfix.grid_sample(x, grid).pow(3)).sum()
    dx, = torch.autograd.grad(y, x, create_graph=True)
    dw, ddx = torch.autograd.grad(dx.square().sum(), (w, x))
    assert_close_rel(dw, 2 * dx.square().sum().view(1) / w, 1e-10)
    assert ddx.abs().max() > 0


def test_second_derivative_in_the_grid_is_refused_not_wrong():
    x, grid = randn(1, 1, 4, 4), randn(1, 3, 3, 2, scale=0.5).requires_grad_()
    d_grid, = torch.autograd.grad(grid_sample_gradfix.grid_sample(x, grid).sum(), grid, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives in the grid"):
        torch.autograd.grad(d_grid.square().sum(), grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_layout(dtype):
    x, grid = randn(2, 4, 8, 8).to(dtype), randn(2, 8, 8, 2, seed=1)
    y = grid_sample_gradfix.grid_sample(x, grid)
    assert y.dtype == dtype
    assert_close_rel(grid_sample_gradfix.grid_sample(x.to(memory_format=torch.channels_last), grid).float(), y.float(), 1e-2)


def test_opcheck():
    x, grid = randn(1, 2, 4, 4).float().requires_grad_(), randn(1, 3, 3, 2, seed=1).float()
    torch.library.opcheck(torch.ops.raycond.grid_sample.default, (x, grid))
    torch.library.opcheck(torch.ops.raycond.grid_sample_adjoint.default, (randn(1, 2, 3, 3).float().requires_grad_(), grid, 4, 4))
