"""Convolutions with a stride against PyTorch's own, in values and in all derivatives up to the second."""

import pytest
import torch
from torch.nn import functional

from torch_utils.ops import conv2d_gradfix, conv2d_resample
from torch_utils.ops.conv2d_gradfix import operator as strided_conv

CASES = [((2, 5, 9, 9), 3, 2), ((1, 4, 10, 8), 3, 2), ((2, 3, 7, 11), 2, 3), ((1, 2, 6, 6), 1, 2)]


def derivatives(function, *inputs):
    """The value, first derivatives along a random vector, and second ones of those."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    y = function(*inputs)
    generator = torch.Generator().manual_seed(1)

    def random(like):
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    first = torch.autograd.grad(y, inputs, random(y), create_graph=True)
    second = torch.autograd.grad(sum((grad * random(grad)).sum() for grad in first), inputs)
    return [y, *first, *second]


@pytest.mark.parametrize("shape, kernel, stride", CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_agrees_with_torch(shape, kernel, stride, memory_format):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format)
    w = torch.randn([4, shape[1], kernel, kernel], dtype=torch.float64)
    ours = derivatives(lambda x, w: strided_conv.conv2d(x, w, stride), x, w)
    torch.testing.assert_close(ours, derivatives(lambda x, w: functional.conv2d(x, w, stride=stride), x, w))
    w = w.transpose(0, 1).contiguous()
    ours = derivatives(lambda x, w: strided_conv.conv_transpose2d(x, w, stride), x, w)
    torch.testing.assert_close(ours, derivatives(lambda x, w: functional.conv_transpose2d(x, w, stride=stride), x, w))


@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("weight_shape", [(64, 32, 3, 3), (64, 128, 3, 3), (128, 64, 3, 3), (64, 64, 3)])
def test_what_does_not_fit_is_refused_as_torch_refuses_it(function, weight_shape):
    """Sizes at which native kernels would be used, so that no kernel reads past its input."""
    x, w = torch.randn(2, 64, 64, 64), torch.randn(weight_shape, requires_grad=True)
    try:
        expected = getattr(functional, function)(x, w, padding=1)
    except RuntimeError as error:
        with pytest.raises(type(error)):
            getattr(conv2d_gradfix, function)(x, w, padding=1)
    else:
        torch.testing.assert_close(getattr(conv2d_gradfix, function)(x, w, padding=1), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("padding", ["same", "valid", (1,), [1, 0], 2])
def test_paddings_of_every_kind(padding):
    x, w = torch.randn(2, 64, 64, 64), torch.randn(64, 64, 3, 3)
    torch.testing.assert_close(conv2d_gradfix.conv2d(x, w, padding=padding), functional.conv2d(x, w, padding=padding), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("op", ["strided_conv_down", "strided_conv_up", "strided_conv_taps"])
def test_registered_well(op):
    x, y, w = (torch.randn(shape, requires_grad=True) for shape in ([2, 3, 9, 9], [2, 4, 4, 4], [4, 3, 3, 3]))
    args = dict(strided_conv_down=(x, w, 2), strided_conv_up=(y, w, 2, [9, 9]), strided_conv_taps=(x, y, 2, [3, 3]))[op]
    torch.library.opcheck(getattr(torch.ops.raycond, op).default, args)


def test_is_what_resampling_convolutions_use_for_gradients(monkeypatch):
    """And with weight gradients switched off there are none."""
    used = []
    for name in ("conv2d", "conv_transpose2d"):
        monkeypatch.setattr(strided_conv, name, lambda *args, name=name, function=getattr(strided_conv, name): used.append(name) or function(*args))
    x, w = torch.randn(1, 64, 8, 8, requires_grad=True), torch.randn(64, 64, 3, 3, requires_grad=True)
    f = torch.ones(4, 4) / 16
    for factors in (dict(up=2), dict(down=2)):
        y = conv2d_resample.conv2d_resample(x, w, f, padding=1, **factors)
        with torch.no_grad():
            plain = conv2d_resample.conv2d_resample(x, w, f, padding=1, **factors)
        torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-4)
        assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(y.square().sum(), [x, w]))
    assert used == ["conv_transpose2d", "conv2d"]
    with conv2d_gradfix.no_weight_gradients():
        y = conv2d_resample.conv2d_resample(x, w, f, padding=1, down=2)
    assert torch.autograd.grad(y.sum(), [x, w], allow_unused=True)[1] is None
