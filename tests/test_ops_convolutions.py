"""conv2d_resample, conv2d_gradfix and fma: stored numbers, the definition, gradients, what is left uncomputed."""

import json

import numpy as np
import pytest
import torch
from helpers import assert_close_rel, load_golden
from torch.nn import functional

from torch_utils.ops import conv2d_gradfix, conv2d_resample, fma, upfirdn2d

GOLDEN = load_golden("conv2d_resample.npz")
CASES = [json.loads(case) for case in GOLDEN["cases"]]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(dtype)


def by_definition(x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    """Upsample by the filter, convolve at the high rate, downsample by the filter; padding that keeps the image in place."""
    fh, fw = (f.shape[0], f.shape[-1]) if f is not None else (1, 1)
    extra = np.array([(fw + up - 1) // 2, (fw - up) // 2, (fh + up - 1) // 2, (fh - up) // 2]) * (up > 1)
    extra += np.array([(fw - down + 1) // 2, (fw - down) // 2, (fh - down + 1) // 2, (fh - down) // 2]) * (down > 1)
    padding = np.array(padding if isinstance(padding, (tuple, list)) else [padding] * 4)
    x = upfirdn2d.upfirdn2d(x, f if up > 1 else None, up=up, padding=[int(p) for p in padding + extra], gain=up ** 2, flip_filter=flip_filter, impl="ref")
    x = functional.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return upfirdn2d.upfirdn2d(x, f, down=down, flip_filter=flip_filter, impl="ref") if down > 1 else x


@pytest.mark.parametrize("index", range(len(CASES)))
def test_golden(index):
    case = dict(CASES[index])
    assert case.pop("f_taps") == "1331"
    x, w = (torch.from_numpy(GOLDEN[f"{index}/{name}"]) for name in "xw")
    y = conv2d_resample.conv2d_resample(x, w, f=upfirdn2d.setup_filter([1, 3, 3, 1]), **case)
    assert_close_rel(y, GOLDEN[f"{index}/y"], 2e-4)


@pytest.mark.parametrize("flips", [(True, False), (False, True)])
@pytest.mark.parametrize("padding", [0, 1, (2, 0, -1, 3)])
@pytest.mark.parametrize("kernel, groups", [((3, 3), 1), ((1, 1), 1), ((3, 3), 2), ((5, 2), 1)])
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (1, 3)])
def test_equals_definition(up, down, kernel, groups, padding, flips):
    """Values, first and second gradients, with a filter that has no symmetry."""
    f = torch.tensor([[1.0, 2, 4, 1], [0, 3, 1, -1], [2, 2, 0, 1]])
    results = []
    for fn in (by_definition, conv2d_resample.conv2d_resample):
        x, w = randn(2, 4, 8, 9).requires_grad_(), randn(6, 4 // groups, *kernel, seed=1).requires_grad_()
        y = fn(x, w, f, up, down, padding, groups, *flips)
        dx, dw = torch.autograd.grad(y.pow(3).sum(), (x, w), create_graph=True)
        results.append((y, dx, dw, *torch.autograd.grad(dx.square().sum() + dw.square().sum(), (x, w))))
    for what, expected, actual in zip(("y", "dx", "dw", "ddx", "ddw"), *results):
        assert_close_rel(actual, expected, 1e-9, what)


@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2)])
def test_memory_formats_and_empty_batch(up, down):
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    x, w = randn(2, 4, 8, 8, dtype=torch.float32), randn(4, 4, 3, 3, dtype=torch.float32)
    settings = dict(f=f, up=up, down=down, padding=1)
    y = conv2d_resample.conv2d_resample(x, w, **settings)
    assert_close_rel(conv2d_resample.conv2d_resample(x.to(memory_format=torch.channels_last), w, **settings), y, 1e-6)
    assert conv2d_resample.conv2d_resample(x[:0], w, **settings).shape == (0, *y.shape[1:])


# ---------------------------------------------------------------------------------------------------------------------
# conv2d_gradfix: what today's PyTorch does by itself, and the switch.

def operators_of(fn):
    """Names of the ATen operators that fn() runs, with the output mask of each convolution_backward."""
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func.name(), args[-1] if "convolution_backward" in func.name() else None))
            return func(*args, **(kwargs or {}))

    with Spy():
        fn()
    return seen


@pytest.mark.parametrize("conv", [conv2d_gradfix.conv2d, conv2d_gradfix.conv_transpose2d])
def test_autograd_skips_the_weight_gradient_nobody_asked_for(conv):
    x, w = randn(1, 2, 5, 5).requires_grad_(), randn(2, 2, 3, 3).requires_grad_()
    y = conv(x, w)
    masks = [list(mask) for name, mask in operators_of(lambda: torch.autograd.grad(y.sum(), x, create_graph=True)) if mask is not None]
    assert masks == [[True, False, False]]


@pytest.mark.parametrize("groups, stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("conv", [conv2d_gradfix.conv2d, conv2d_gradfix.conv_transpose2d])
def test_built_in_convolutions_have_right_double_gradients(conv, groups, stride):
    x = randn(1, 2, 4, 4).requires_grad_()
    w = randn(2, 2 // groups, 3, 3, seed=1).requires_grad_()
    fn = lambda x, w: conv(x, w, stride=stride, padding=1, groups=groups)      # noqa: E731
    assert torch.autograd.gradcheck(fn, (x, w))
    assert torch.autograd.gradgradcheck(fn, (x, w))


def test_no_weight_gradients():
    x, w = randn(1, 2, 5, 5).requires_grad_(), randn(2, 2, 3, 3).requires_grad_()
    with conv2d_gradfix.no_weight_gradients():
        with conv2d_gradfix.no_weight_gradients(False):
            y = conv2d_gradfix.conv2d(x, w)
    dx, dw = torch.autograd.grad(y.sum(), (x, w), allow_unused=True)
    assert dx.abs().max() > 0 and dw is None
    assert not conv2d_gradfix.weight_gradients_disabled
    y = conv2d_gradfix.conv_transpose2d(x, w)
    assert torch.autograd.grad(y.sum(), w)[0].abs().max() > 0


def test_no_weight_gradients_ends_with_an_error():
    with pytest.raises(KeyError):
        with conv2d_gradfix.no_weight_gradients():
            raise KeyError
    assert not conv2d_gradfix.weight_gradients_disabled


# ---------------------------------------------------------------------------------------------------------------------
# fma.

@pytest.mark.parametrize("shapes", [
    [(2, 3, 4, 4), (2, 3, 1, 1), (4, 4)],
    [(2, 3, 4, 4), (1,), (2, 1, 4, 4)],
    [(3,), (2, 3), ()],
    [(0, 3), (3,), (0, 1)],
])
def test_fma(shapes):
    a, b, c = (randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))
    assert_close_rel(fma.fma(a, b, c), a * b + c, 1e-14)
    grads = torch.autograd.grad(fma.fma(a, b, c).sum(), (a, b, c))
    assert [g.shape for g in grads] == [t.shape for t in (a, b, c)]
    if a.numel():
        assert torch.autograd.gradcheck(fma.fma, (a, b, c))
        assert torch.autograd.gradgradcheck(fma.fma, (a, b, c))
