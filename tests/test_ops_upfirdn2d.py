"""upfirdn2d: stored numbers, definition against fast path, gradients of the registered operator, layouts, dtypes, edges."""

import json

import numpy as np
import pytest
import torch
from helpers import assert_close_rel, load_golden

from torch_utils.ops import upfirdn2d
from torch_utils.ops.upfirdn2d import Settings, operator, plain, reference

GOLDEN = load_golden("upfirdn2d.npz")
CASES = [json.loads(case) for case in GOLDEN["cases"]]

# (up, down, padding) with up and down as (x, y), padding as (left, right, top, bottom).
SETTINGS = {
    "same":         ((1, 1), (1, 1), (1, 1, 1, 1)),
    "blur-uneven":  ((1, 1), (1, 1), (2, 1, 0, 3)),
    "crop":         ((1, 1), (1, 1), (-1, -2, 3, -1)),
    "up2":          ((2, 2), (1, 1), (2, 1, 2, 1)),
    "up2-shifted":  ((2, 2), (1, 1), (1, 2, 3, 0)),
    "up2-wide":     ((2, 2), (1, 1), (7, 6, 5, 8)),
    "up2-crop":     ((2, 2), (1, 1), (-2, 1, 1, -3)),
    "down2":        ((1, 1), (2, 2), (1, 1, 1, 1)),
    "down2-crop":   ((1, 1), (2, 2), (-1, 3, 4, -1)),
    "up3-down2":    ((3, 3), (2, 2), (2, 2, 1, 2)),
    "per-axis":     ((2, 1), (1, 3), (1, 2, 2, 0)),
}
FILTERS = {"4x4": (4, 4), "3x5": (3, 5), "1d-5": (5,), "1d-9": (9,)}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def golden(index, name):
    key = f"{index}/{name}"
    return torch.from_numpy(GOLDEN[key]) if key in GOLDEN else None


def asymmetric(shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32))


def image(shape, dtype=torch.float64, memory_format=torch.contiguous_format, seed=1):
    x = torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(dtype)
    return x.to(memory_format=memory_format)


@pytest.mark.parametrize("impl", ["cuda", "ref"])
@pytest.mark.parametrize("index", range(len(CASES)))
def test_golden(index, impl):
    case = dict(CASES[index])
    fn = case.pop("fn")
    case.pop("f_taps", None)
    if fn == "setup_filter":
        assert_close_rel(upfirdn2d.setup_filter(golden(index, "f_in"), **case), golden(index, "f"), 2e-4, "filter")
        return
    x = golden(index, "x").requires_grad_()
    y = getattr(upfirdn2d, fn)(x, golden(index, "f"), **case, impl=impl)
    assert_close_rel(y, golden(index, "y"), 2e-4, "y")
    if golden(index, "dy") is not None:
        assert_close_rel(torch.autograd.grad(y, x, golden(index, "dy"))[0], golden(index, "dx"), 1e-3, "dx")


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("taps", FILTERS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_fast_path_equals_definition(setting, taps, flip, memory_format):
    """Values, first and second gradients; the second of a nonlinear function, since that of a linear map alone is zero."""
    f = asymmetric(FILTERS[taps])
    results = []
    for fn in (reference.upfirdn2d, plain.upfirdn2d):
        x = image((2, 3, 13, 15), memory_format=FORMATS[memory_format]).requires_grad_()
        y = fn(x, f, Settings(*SETTINGS[setting], flip, -1.5))
        dx, = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        results.append((y, dx, torch.autograd.grad(dx.square().sum(), x)[0]))
    for what, expected, actual in zip(("y", "dx", "ddx"), *results):
        assert expected.abs().max() > 0
        assert_close_rel(actual, expected, 1e-10, what)


def test_definition_against_numpy():
    """The definition itself, on paper: stuffing zeros, full convolution, keeping every second sample."""
    x, f = np.array([1.0, -2.0, 4.0]), np.array([0.5, 1.0, 3.0])
    stuffed = np.zeros(6)
    stuffed[::2] = x
    expected = np.convolve(np.pad(stuffed, (2, 1)), f, mode="valid")[::2]
    y = upfirdn2d.upfirdn2d(torch.from_numpy(x).view(1, 1, 1, 3), torch.tensor(f, dtype=torch.float32).view(1, 3), up=(2, 1), down=(2, 1),
                            padding=(2, 1, 0, 0), impl="ref")
    np.testing.assert_allclose(y.numpy().ravel(), expected, atol=1e-12)


@pytest.mark.parametrize("taps", ["4x4", "3x5", "1d-5"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_registered_operator_gradients(setting, taps):
    """The formulas that the CUDA kernels run under, on the operator's CPU kernel."""
    f = asymmetric(FILTERS[taps])
    x = image((1, 1, 7, 8)).requires_grad_()
    fn = lambda x: operator.upfirdn2d(x, f, Settings(*SETTINGS[setting], False, 1.5))      # noqa: E731
    assert torch.autograd.gradcheck(fn, (x,))
    assert torch.autograd.gradgradcheck(fn, (x,), fast_mode=True)


@pytest.mark.parametrize("setting, memory_format", [("down2-crop", "contiguous"), ("up2", "channels_last")])
def test_registered_operator_opcheck(setting, memory_format):
    x = image((2, 3, 9, 11), torch.float32, FORMATS[memory_format]).requires_grad_()
    up, down, padding = map(list, SETTINGS[setting])
    torch.library.opcheck(torch.ops.raycond.upfirdn2d.default, (x, asymmetric((4, 4)), up, down, padding, False, 2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("setting", ["same", "up2", "down2", "per-axis"])
def test_low_precision(setting, dtype):
    """No further from the double-precision result than a few roundings of that dtype, sums of magnitudes being what rounds."""
    f = asymmetric((4, 4))
    x = image((2, 3, 16, 16), dtype)
    settings = Settings(*SETTINGS[setting], False, 1.0)
    exact = reference.upfirdn2d(x.double(), f, settings)
    scale = reference.upfirdn2d(x.double().abs(), f.abs(), settings)
    y = upfirdn2d.upfirdn2d(x, f, *SETTINGS[setting])
    assert y.dtype == dtype
    assert ((y.double() - exact).abs() <= 2 * torch.finfo(dtype).eps * scale + 1e-7).all()


@pytest.mark.parametrize("impl", ["cuda", "ref"])
def test_empty_batch(impl):
    x = torch.empty([0, 3, 8, 8], requires_grad=True)
    y = upfirdn2d.upsample2d(x, upfirdn2d.setup_filter([1, 3, 3, 1]), impl=impl)
    assert y.shape == (0, 3, 16, 16)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_single_output_pixel():
    f = asymmetric((4, 4))
    x = image((1, 2, 4, 4))
    y = upfirdn2d.upfirdn2d(x, f, down=2)
    assert_close_rel(y, (x * f.double().flip([0, 1])).sum([2, 3], keepdim=True), 1e-10)


def test_gradient_is_zero_where_no_output_looks():
    """Cropped pixels and dropped samples get a gradient, and it is exactly zero."""
    x = image((1, 1, 8, 8)).requires_grad_()
    y = upfirdn2d.upfirdn2d(x, torch.ones([1, 1]), down=2, padding=(-2, 0, 0, 0))
    dx, = torch.autograd.grad(y.sum(), x)
    expected = torch.zeros_like(dx)
    expected[:, :, ::2, 2::2] = 1
    assert torch.equal(dx, expected)


def test_second_gradient_in_x_is_zero_for_a_linear_loss():
    x, dy = image((1, 1, 6, 6)).requires_grad_(), image((1, 1, 6, 6), seed=2).requires_grad_()
    y = operator.upfirdn2d(x, asymmetric((3, 3)), Settings((1, 1), (1, 1), (1, 1, 1, 1), False, 1.0))
    dx, = torch.autograd.grad(y, x, dy, create_graph=True)
    d_x, d_dy = torch.autograd.grad(dx.square().sum(), (x, dy), allow_unused=True, materialize_grads=True)
    assert d_x.abs().max() == 0 and d_dy.abs().max() > 0


@pytest.mark.parametrize("f", [None, (4, 4), (9,)])
def test_result_is_a_new_tensor(f):
    """Callers add to it in place."""
    x = image((1, 2, 12, 12), torch.float32)
    before = x.clone()
    upfirdn2d.upfirdn2d(x, None if f is None else asymmetric(f), padding=5).add_(1)
    upfirdn2d.upfirdn2d(x, None).add_(1)
    assert torch.equal(x, before)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("setting", ["same", "up2", "down2"])
def test_memory_format_is_kept(setting, memory_format):
    x = image((2, 8, 16, 16), torch.float32, FORMATS[memory_format])
    y = plain.upfirdn2d(x, asymmetric((4, 4)), Settings(*SETTINGS[setting], False, 1.0))
    assert y.is_contiguous(memory_format=FORMATS[memory_format])


def test_constant_passes_up_and_down():
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    ones = torch.ones([1, 1, 16, 16])
    inner = (..., slice(4, -4), slice(4, -4))
    for y in (upfirdn2d.filter2d(ones, f), upfirdn2d.upsample2d(ones, f), upfirdn2d.downsample2d(torch.ones([1, 1, 32, 32]), f)):
        assert_close_rel(y[inner], torch.ones_like(y[inner]), 1e-6)


@pytest.mark.parametrize("call, complaint", [
    (lambda x, f: upfirdn2d.upfirdn2d(x[0], f), "expected \\[N, C, H, W\\]"),
    (lambda x, f: upfirdn2d.upfirdn2d(x, f.double()), "float64"),
    (lambda x, f: upfirdn2d.upfirdn2d(x, f.clone().requires_grad_()), "requires_grad=True"),
    (lambda x, f: upfirdn2d.upfirdn2d(x, f, up=0), "up 0"),
    (lambda x, f: upfirdn2d.upfirdn2d(x, f, padding=-3), "smaller than the 4 x 4 filter"),
    (lambda x, f: upfirdn2d.upfirdn2d(x, f, impl="cpu"), "impl 'cpu'"),
    (lambda x, f: upfirdn2d.setup_filter(f, separable=True), "cannot be kept separable"),
])
def test_wrong_arguments(call, complaint):
    with pytest.raises(AssertionError, match=complaint):
        call(torch.zeros([1, 1, 8, 8]), torch.ones([4, 4]))


@pytest.mark.timeout(60, method="thread")
@pytest.mark.parametrize("impl", ["ref", "cuda"])
@pytest.mark.parametrize("shape", [[24], [1, 16], [16, 20]])
def test_wide_filters_in_float16_return(shape, impl):
    """oneDNN's own do not, on CPUs with AVX512-FP16."""
    x, f = torch.from_numpy(np.random.RandomState(0).standard_normal([2, 3, 60, 60])), torch.from_numpy(np.random.RandomState(1).uniform(0, 1, shape))
    f = (f / f.sum()).float()
    y = upfirdn2d.upfirdn2d(x.half(), f, padding=9, impl=impl)
    assert y.dtype == torch.float16
    assert (y.double() - upfirdn2d.upfirdn2d(x, f, padding=9, impl=impl)).abs().max() <= 2e-3 * x.abs().max()
