"""upfirdn2d in C++ for CPUs: against the definition in double precision with first and second gradients, edges, threads, what it leaves alone."""

import shutil

import numpy as np
import pytest
import torch
from helpers import assert_close_rel

from torch_utils import custom_ops
from torch_utils.ops import backends, upfirdn2d
from torch_utils.ops.upfirdn2d import Settings, cpu, operator, plain

needs_cxx = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler: nothing can be compiled for the CPU")

# (up, down, padding) with up and down as (x, y), padding as (left, right, top, bottom).
SETTINGS = {
    "same":         ((1, 1), (1, 1), (1, 2, 1, 2)),
    "blur":         ((1, 1), (1, 1), (2, 2, 2, 2)),
    "crop":         ((1, 1), (1, 1), (-1, -2, 3, -1)),
    "up2":          ((2, 2), (1, 1), (2, 1, 2, 1)),
    "up2-crop":     ((2, 2), (1, 1), (-2, 1, 1, -3)),
    "down2":        ((1, 1), (2, 2), (1, 1, 1, 1)),
    "down2-crop":   ((1, 1), (2, 2), (-1, 3, 4, -1)),
    "up3-down2":    ((3, 3), (2, 2), (2, 2, 1, 2)),
    "up4-down3":    ((4, 4), (3, 3), (3, 5, 6, 2)),
    "per-axis":     ((2, 1), (1, 4), (1, 2, 2, 3)),
    "far":          ((1, 1), (1, 1), (12, 1, 0, 15)),       # pixels and rows that no sample reaches
}
FILTERS = ("bilinear", "4x4", "3x5", "1x1", "1d-5", "1d-12")


@pytest.fixture(autouse=True)
def take_small_ones_too(monkeypatch):
    monkeypatch.setattr(cpu, "LEAST_ELEMENTS", 0)


def taps(name):
    if name == "bilinear":
        return upfirdn2d.setup_filter([1, 3, 3, 1])
    shape = [int(name[3:])] if name.startswith("1d") else [int(size) for size in name.split("x")]
    return torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, shape).astype(np.float32))


def image(shape, dtype=torch.float32, seed=1):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float().to(dtype).to(memory_format=torch.channels_last)


@needs_cxx
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [16, 37])
@pytest.mark.parametrize("taps_name", FILTERS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_definition(setting, taps_name, channels, flip):
    """Values, first and second gradients, the second of a nonlinear function."""
    f = taps(taps_name)
    results = []
    for dtype, impl in ((torch.float64, "ref"), (torch.float32, "cuda")):
        x = image((2, channels, 14, 15), dtype).requires_grad_()
        y = upfirdn2d.upfirdn2d(x, f, *SETTINGS[setting], flip, -1.5, impl=impl)
        dx, = torch.autograd.grad((y * image(y.shape, dtype, 2)).square().sum(), x, create_graph=True)
        results.append((y, dx, torch.autograd.grad(dx.square().sum(), x)[0]))
    for what, expected, actual in zip(("y", "dx", "ddx"), *results):
        assert expected.abs().max() > 0
        assert_close_rel(actual, expected, 3e-6, what)
    assert "upfirdn2d" in type(results[1][0].grad_fn).__name__.lower() and results[1][0].is_contiguous(memory_format=torch.channels_last)


@needs_cxx
@pytest.mark.parametrize("setting", ["same", "up2", "down2"])
def test_many_stretches_and_pieces(setting, monkeypatch):
    """Rows longer than a stretch, more rows than a piece, with torch's threads or our own."""
    f, x = taps("bilinear"), image((2, 520, 40, 70))
    expected = plain.upfirdn2d(x.double(), f, Settings(*SETTINGS[setting], False, 4.0))
    before = torch.get_num_threads()
    results = []
    try:
        for threads, lent in ((1, True), (2, True), (3, False)):
            torch.set_num_threads(threads)
            if not lent:
                monkeypatch.setattr(backends, "_parallel_for", lambda: None)
            results.append(upfirdn2d.upfirdn2d(x, f, *SETTINGS[setting], gain=4))
    finally:
        torch.set_num_threads(before)
    assert_close_rel(results[0], expected, 1e-6)
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_cxx
@pytest.mark.parametrize("change, outer", [(0.0, True), (1e-8, True), (1e-3, False)])
def test_an_almost_separable_filter_keeps_its_difference(change, outer):
    """Whichever way is taken, the result is that of the given taps."""
    f = taps("bilinear")
    f[3, 1] += change
    x = image((1, 16, 12, 12))
    y = upfirdn2d.upfirdn2d(x, f, padding=2)
    settings = Settings((1, 1), (1, 1), (2, 2, 2, 2), False, 1.0)
    expected = plain.upfirdn2d(x.double(), f, settings)
    assert_close_rel(y, expected, 1e-6)
    separable = plain.upfirdn2d(x.double(), taps("bilinear"), settings)
    assert ((y - separable).abs().max() < 1e-5) == outer


@needs_cxx
def test_zero_filter():
    assert torch.equal(upfirdn2d.upfirdn2d(image((1, 16, 8, 8)), torch.zeros(4, 4), padding=2), torch.zeros(1, 16, 9, 9))


@needs_cxx
@pytest.mark.parametrize("taps_name", ["bilinear", "4x4"])
def test_what_is_not_finite_stays_where_the_filter_meets_it(taps_name):
    x = image((1, 16, 20, 20))
    x[0, 5, 0, 10] = float("nan")
    y = upfirdn2d.upfirdn2d(x, taps(taps_name), padding=(1, 2, 6, 2))
    expected = upfirdn2d.upfirdn2d(x, taps(taps_name), padding=(1, 2, 6, 2), impl="ref").isnan()
    assert expected.sum() == 16 and torch.equal(y.isnan(), expected)


@needs_cxx
def test_filters_are_read_at_each_call():
    x, f = image((1, 16, 8, 8)), taps("bilinear")
    first = upfirdn2d.upsample2d(x, f)
    f.mul_(2)
    assert torch.equal(upfirdn2d.upsample2d(x, f), 2 * first)


@needs_cxx
@pytest.mark.parametrize("setting", ["same", "up2", "down2-crop"])
def test_registered_operator_opcheck(setting):
    up, down, padding = map(list, SETTINGS[setting])
    x = image((2, 20, 9, 11)).requires_grad_()
    assert operator.takes(x, taps("bilinear"))
    torch.library.opcheck(torch.ops.raycond.upfirdn2d.default, (x, taps("bilinear"), up, down, padding, False, 2.0))


@pytest.mark.parametrize("case", ["contiguous", "sliced", "few channels", "double", "one pixel", "no filter"])
def test_what_it_leaves_to_the_plain_path(case, monkeypatch):
    monkeypatch.setattr(cpu, "run", None)
    x = image((2, 32, 6, 6))
    x = dict(contiguous=lambda: x.contiguous(), sliced=lambda: x[:, ::2], double=lambda: x.double()).get(case, lambda: x)()
    x = x[:, :3].contiguous(memory_format=torch.channels_last) if case == "few channels" else x[:, :, :1, :1] if case == "one pixel" else x
    f = None if case == "no filter" else taps("bilinear")
    assert_close_rel(upfirdn2d.upsample2d(x, f), upfirdn2d.upsample2d(x.double(), f, impl="ref"), 1e-6)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(custom_ops, "_paths", {})
    monkeypatch.setattr(custom_ops, "_libraries", {})
    monkeypatch.setattr(custom_ops, "verbosity", "none")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr(cpu, "run", None)
    x, f = image((1, 16, 8, 8)), taps("bilinear")
    assert_close_rel(upfirdn2d.downsample2d(x, f), upfirdn2d.downsample2d(x.double(), f, impl="ref"), 1e-6)
    y = operator.upfirdn2d(x, f, Settings((2, 2), (1, 1), (2, 1, 2, 1), False, 4.0))
    assert_close_rel(y, upfirdn2d.upsample2d(x.double(), f, impl="ref"), 1e-6)
    assert custom_ops.path("upfirdn2d", "cpu") == "plain"


def test_reference_mode(monkeypatch):
    monkeypatch.setenv("RAYCOND_OPS", "reference")
    monkeypatch.setattr(operator, "upfirdn2d", None)
    monkeypatch.setattr(plain, "upfirdn2d", None)
    assert upfirdn2d.upsample2d(image((1, 16, 8, 8)), taps("bilinear")).shape == (1, 16, 16, 16)
