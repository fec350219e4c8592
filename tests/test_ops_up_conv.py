"""Transposed convolution and filter in one, against the two."""

import pytest
import torch
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import conv2d_resample, upfirdn2d
from torch_utils.ops.conv2d_resample import cpu as up_conv

needs_compiler = pytest.mark.skipif(custom_ops.path("up_conv", "cpu") != "native", reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def take_small_ones_too(monkeypatch):
    monkeypatch.setattr(up_conv, "LEAST_ELEMENTS", 0)


@needs_compiler
@pytest.mark.parametrize("N, I, O, H, W", [(1, 16, 16, 8, 8), (2, 7, 19, 5, 9), (1, 3, 130, 1, 1), (1, 20, 64, 40, 70), (3, 5, 1, 2, 3)])
@pytest.mark.parametrize("taps, padding", [([1, 3, 3, 1], (1, 1, 1, 1)), ([1, 2, 1], (0, 2, -1, 1)), ([1, 4, 9, 16, 22, 9, 4, 1], (5, 4, 4, 5)),
                                           ([1], (0, 0, 0, 0))])
@pytest.mark.parametrize("threads", [1, 2])
def test_agrees_with_the_two(N, I, O, H, W, taps, padding, threads):
    torch.manual_seed(0)
    x = torch.randn(N, I, H, W).to(memory_format=torch.channels_last)
    w, f = torch.randn(O, I, 3, 3), upfirdn2d.setup_filter(taps)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert up_conv.takes(x, w, f, 2, 1, padding)
        y = up_conv.up_conv(x, w, f, padding, gain=4.0)
    finally:
        torch.set_num_threads(before)
    wide = functional.conv_transpose2d(x.double(), w.double().transpose(0, 1), stride=2)
    expected = upfirdn2d.upfirdn2d(wide, f, padding=padding, gain=4.0, impl="ref")
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@needs_compiler
def test_what_is_taken():
    x, w, f = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 3, 3), upfirdn2d.setup_filter([1, 3, 3, 1])

    def takes(x=x, w=w, f=f, up=2, groups=1, padding=(1, 1, 1, 1)):
        return up_conv.takes(x, w, f, up, groups, padding)

    assert takes() and not takes(w=w.clone().requires_grad_())
    with torch.no_grad():
        assert takes(w=w.clone().requires_grad_())
    assert not any([takes(f=None), takes(f=f.double()), takes(f=f.clone().requires_grad_()), takes(up=3), takes(groups=2), takes(x.double(), w.double()),
                    takes(padding=(1, -13, 1, 1)), takes(padding=(-6, -4, 1, 1))])
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes()


@needs_compiler
def test_is_a_registered_operator():
    """What traces and compiles sees one node, and nothing reads the memory of tensors that have none."""
    x, w = torch.randn(2, 5, 6, 7).to(memory_format=torch.channels_last), torch.randn(4, 5, 3, 3)
    for f in (upfirdn2d.setup_filter([1, 3, 3, 1]), torch.tensor([1.0, 2.0, 3.0]), torch.randn(4, 3)):
        torch.library.opcheck(torch.ops.raycond.up_conv.default, (x, w, f, [1, 2, 0, 1], 4.0))
        wide = functional.conv_transpose2d(x.double(), w.double().transpose(0, 1), stride=2)
        expected = upfirdn2d.upfirdn2d(wide, f, padding=[1, 2, 0, 1], gain=4.0, impl="ref")
        torch.testing.assert_close(up_conv.up_conv(x, w, f, (1, 2, 0, 1), 4.0).double(), expected, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traces_follow_their_input():
    x, w, f = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3), upfirdn2d.setup_filter([1, 3, 3, 1])
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1), x, check_trace=False)
        torch.testing.assert_close(traced(2 * x), conv2d_resample.conv2d_resample(2 * x, w, f, up=2, padding=1), rtol=1e-4, atol=1e-4)


@needs_compiler
def test_autocast():
    """Convolutions are then in half precision, and so is their sum."""
    x, w, f = torch.randn(1, 64, 16, 16), torch.randn(64, 64, 3, 3), upfirdn2d.setup_filter([1, 3, 3, 1])
    expected = conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1)
    w.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            y = conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1)
        (grad,) = torch.autograd.grad(conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1).float().square().sum(), w)
    assert float((y.float() - expected).norm() / expected.norm()) < 0.02 and grad.isfinite().all()


@needs_compiler
@pytest.mark.parametrize("flip_weight", [True, False])
def test_resampling_convolutions_use_it(flip_weight, monkeypatch):
    x, w, f = torch.randn(2, 16, 12, 10), torch.randn(8, 16, 3, 3), upfirdn2d.setup_filter([1, 3, 3, 1])
    used = []
    monkeypatch.setattr(up_conv, "up_conv", lambda *args, function=up_conv.up_conv, **kwargs: used.append(1) or function(*args, **kwargs))
    y = conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1, flip_weight=flip_weight)
    monkeypatch.setenv("RAYCOND_OPS", "reference")
    expected = conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1, flip_weight=flip_weight)
    assert used == [1] and y.shape == (2, 8, 24, 20)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
