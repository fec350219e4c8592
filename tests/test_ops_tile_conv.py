"""Convolutions on the CPU's matrix units against PyTorch's own in double precision, in values and in all derivatives up to the second."""

import pytest
import torch
from test_ops_strided_conv import derivatives
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import conv2d_gradfix, conv2d_resample
from torch_utils.ops.conv2d_gradfix import cpu as tile_conv
from torch_utils.ops.conv2d_gradfix import operator as strided_conv

needs_unit = pytest.mark.skipif(custom_ops.path("tile_conv", "cpu") != "native" or not tile_conv._unit_is_there(),
                                reason="needs a CPU with matrix units for bfloat16 and a C++ compiler that knows them")
LOST = 2e-5                             # of the whole: what factors of 16 bits cost at the most

# x, outputs, kernel, stride, padding
CASES = [((2, 64, 16, 16), 64, (3, 3), 1, (1, 1)), ((1, 70, 9, 12), 33, (3, 3), 1, (1, 1)), ((3, 5, 7, 11), 4, (3, 3), 1, (0, 1)),
         ((2, 64, 17, 17), 70, (3, 3), 2, (0, 0)), ((1, 37, 10, 9), 50, (3, 3), 2, (1, 1)), ((2, 8, 6, 8), 20, (2, 2), 2, (0, 0)),
         ((2, 20, 8, 5), 3, (1, 3), 1, (0, 1)), ((9, 16, 4, 4), 16, (3, 3), 1, (1, 1))]


@pytest.fixture
def takes_all(monkeypatch):
    monkeypatch.setattr(tile_conv, "LEAST_ELEMENTS", 0)
    monkeypatch.setattr(tile_conv, "LEAST_CHANNELS", 1)


@pytest.fixture
def used(monkeypatch):
    """Names of the functions that ran."""
    names = []
    for name in ("down", "up", "taps"):
        monkeypatch.setattr(tile_conv, name, lambda *args, name=name, function=getattr(tile_conv, name): names.append(name) or function(*args))
    return names


def operands(case, dtype=torch.float32):
    shape, outputs, kernel, stride, padding = case
    torch.manual_seed(0)
    return torch.randn(shape, dtype=dtype), torch.randn([outputs, shape[1], *kernel], dtype=dtype), stride, padding


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == torch.float32
        assert (a.double() - e).norm() <= LOST * e.norm() and (a.double() - e).abs().max() <= LOST * e.abs().max()


@needs_unit
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_torch(case, takes_all, used):
    x, w, stride, padding = operands(case)
    assert strided_conv.takes(x, w, stride, padding, 1, transposed=False)
    ours = derivatives(lambda x, w: conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding), x, w)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(ours, derivatives(lambda x, w: functional.conv2d(x, w, stride=stride, padding=padding), x.double(), w.double()))
    w = w.transpose(0, 1)
    ours = derivatives(lambda x, w: conv2d_gradfix.conv_transpose2d(x, w, stride=stride, padding=padding), x, w)
    assert_close(ours, derivatives(lambda x, w: functional.conv_transpose2d(x, w, stride=stride, padding=padding), x.double(), w.double()))
    assert set(used) == {"down", "up", "taps"}


@needs_unit
def test_keeps_16_bits(takes_all):
    """bfloat16 alone would keep 8 of 1 + 2^-12; and sums are those of float32."""
    x, w = torch.full([1, 1, 4, 4], 1 + 2 ** -12), torch.full([1, 1, 3, 3], 1 + 2 ** -12)
    torch.testing.assert_close(tile_conv.down(x, w, 1, (0, 0)), torch.full([1, 1, 2, 2], 9 * (1 + 2 ** -12) ** 2), rtol=2 ** -17, atol=0)


@needs_unit
@pytest.mark.parametrize("case", CASES[:4])
def test_does_not_depend_on_threads(case, takes_all):
    x, w, stride, padding = operands(case)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(derivatives(lambda x, w: conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding), x, w))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_unit
def test_registered_well(takes_all):
    x, y, w = (torch.randn(shape, requires_grad=True) for shape in ([2, 3, 9, 9], [2, 4, 5, 5], [4, 3, 3, 3]))
    for op, args in dict(strided_conv_down=(x, w, 2, [1, 1]), strided_conv_up=(y, w, 2, [9, 9], [1, 1]), strided_conv_taps=(x, y, 2, [3, 3], [1, 1])).items():
        torch.library.opcheck(getattr(torch.ops.raycond, op).default, args, test_utils=("test_schema", "test_faketensor"))


@needs_unit
def test_is_what_networks_use(used):
    """From the sizes on where it pays, also where nothing is recorded; below, and for other dtypes, they compute as ever."""
    x, w, f = torch.randn(4, 64, 32, 32), torch.randn(64, 64, 3, 3), torch.ones(4, 4) / 16
    for factors in (dict(), dict(up=2), dict(down=2)):
        conv2d_resample.conv2d_resample(x, w, f, padding=1, **factors)
    assert used == ["down", "up", "down"]
    for tensor, kernel in ((x[:1, :, :16], w), (x.double(), w.double())):
        conv2d_resample.conv2d_resample(tensor, kernel, f, padding=1)
    assert len(used) == 3


@pytest.mark.parametrize("reason", ["no unit", "no compiler", "reference"])
def test_without_units_torch_computes(reason, monkeypatch, takes_all):
    if reason == "no unit":
        monkeypatch.setattr(tile_conv, "_unit_is_there", lambda: False)
    elif reason == "no compiler":
        monkeypatch.setattr(custom_ops, "path", lambda op, device: "plain")
    else:
        monkeypatch.setenv("RAYCOND_OPS", "reference")
    x, w, stride, padding = operands(CASES[0])
    w.requires_grad_()
    assert not strided_conv.takes(x, w, stride, padding, 1, transposed=False)
    torch.testing.assert_close(conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding), functional.conv2d(x, w, stride=stride, padding=padding))
