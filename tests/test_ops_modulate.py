"""modulate: definition on paper, the C++ path against it in double precision with first and second gradients, layouts, threads, errors."""

import shutil

import numpy as np
import pytest
import torch
from helpers import assert_close_rel

from torch_utils import custom_ops
from torch_utils.ops import backends
from torch_utils.ops.modulate import cpu, demodulation, modulate

needs_cxx = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler: nothing can be compiled for the CPU")

APPENDED = {"none": None, "per-sample": lambda n, h, w: (n, 6, h, w), "shared": lambda n, h, w: (1, 6, h, w), "many": lambda n, h, w: (n, 21, h, w)}
SHAPES = [(1, 4, 5, 6), (2, 16, 8, 8), (3, 37, 9, 7), (1, 64, 30, 31)]
NAMES = ("x", "styles", "appended")


@pytest.fixture(autouse=True)
def take_small_ones_too(monkeypatch):
    monkeypatch.setattr(cpu, "LEAST_ELEMENTS", 0)


def randn(shape, seed, dtype=torch.float64, memory_format=torch.contiguous_format):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float().to(dtype).to(memory_format=memory_format)


def arguments(shape, appended, dtype, memory_format=torch.channels_last):
    N, C, H, W = shape
    maps = None if APPENDED[appended] is None else randn(APPENDED[appended](N, H, W), 2, dtype)
    return [randn(shape, 0, dtype, memory_format), randn([N, C + (0 if maps is None else maps.shape[1])], 1, dtype), maps]


def both_orders(tensors, impl, wanted):
    """y, the first gradients, and those of a nonlinear function of the first."""
    leaves = {name: tensor for name, tensor in zip(NAMES, tensors) if name in wanted and tensor is not None}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = modulate(*tensors, impl=impl)
    dy = randn(y.shape, 5, y.dtype).requires_grad_()
    first = torch.autograd.grad(y, list(leaves.values()), dy, create_graph=True)
    energy = sum((gradient.pow(2) * randn(gradient.shape, 6, y.dtype)).sum() / gradient.detach().square().mean() for gradient in first)
    others = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    second = torch.autograd.grad(energy, [dy, *others], allow_unused=True, materialize_grads=True)
    return dict(zip(["y", *leaves, "d_dy", *(f"d_{name}" for name in leaves)], (y, *first, *second)))


def assert_same(actual, expected, tolerance=3e-5):
    for name, value in expected.items():
        assert_close_rel(actual[name], value, tolerance, name)


@pytest.mark.parametrize("impl", ["auto", "ref"])
def test_on_paper(impl):
    x, appended = torch.tensor([[[[2.0, 3.0]]]]), torch.tensor([[[[5.0, 7.0]]]])
    y = modulate(x, torch.tensor([[10.0, 100.0]]), appended, impl=impl)
    assert y.tolist() == [[[[20, 30]], [[500, 700]]]]


@needs_cxx
@pytest.mark.parametrize("wanted", [NAMES, ("x",), ("styles",), ("appended",), ("x", "styles"), ("styles", "appended")], ids="+".join)
@pytest.mark.parametrize("appended", APPENDED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_definition(shape, appended, wanted):
    if appended == "none" and wanted == ("appended",):
        return
    expected = both_orders(arguments(shape, appended, torch.float64), "ref", wanted)
    assert all(value.abs().max() > 0 for name, value in expected.items() if not name.startswith("d_"))
    for memory_format in (torch.channels_last, torch.contiguous_format):
        actual = both_orders(arguments(shape, appended, torch.float32, memory_format), "cuda", wanted)
        assert "modulate_cpu" in type(actual["y"].grad_fn).__name__
        assert_same(actual, expected)
        assert actual["y"].is_contiguous(memory_format=torch.channels_last)


@needs_cxx
def test_each_second_derivative_alone():
    """Of each first gradient in each tensor, where the others have none."""
    for first in range(3):
        for second in range(4):
            results = []
            for dtype, impl in ((torch.float64, "ref"), (torch.float32, "cuda")):
                leaves = [tensor.requires_grad_() for tensor in arguments((2, 20, 6, 5), "per-sample", dtype)]
                y = modulate(*leaves, impl=impl)
                leaves.append(randn(y.shape, 5, dtype).requires_grad_())
                gradient, = torch.autograd.grad(y, leaves[first], leaves[3], create_graph=True)
                results.append(torch.autograd.grad((gradient * randn(gradient.shape, 6, dtype)).sum(), leaves[second], allow_unused=True,
                                                   materialize_grads=True)[0])
            assert_close_rel(results[1], results[0], 2e-6, f"{first} {second}")


@needs_cxx
def test_third_order():
    results = []
    for dtype, impl in ((torch.float64, "ref"), (torch.float32, "cuda")):
        leaves = [tensor.requires_grad_() for tensor in arguments((2, 16, 6, 6), "per-sample", dtype)]
        y = modulate(*leaves, impl=impl)
        for _ in range(3):
            gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            y = gradients[0] + gradients[1].sum(1)[:, None, None, None] / 30
        results.append(dict(zip(NAMES, gradients)))
    assert all(value.abs().max() > 0 for value in results[0].values())
    assert_same(results[1], results[0], 1e-4)


@needs_cxx
@pytest.mark.parametrize("case", ["channels_last", "expanded", "sliced", "transposed", "permuted"])
def test_layouts_of_what_is_appended(case):
    x, styles, appended = arguments((2, 20, 8, 8), "per-sample", torch.float32)
    appended = dict(channels_last=lambda: appended.contiguous(memory_format=torch.channels_last), expanded=lambda: appended[:1].expand(2, -1, -1, -1),
                    sliced=lambda: torch.cat([appended] * 2, 1)[:, ::2], transposed=lambda: appended.transpose(2, 3),
                    permuted=lambda: appended.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3))[case]()
    assert torch.equal(modulate(x, styles, appended), modulate(x, styles, appended, impl="ref"))


@needs_cxx
@pytest.mark.parametrize("lent", [True, False])
def test_threads_change_no_bit(lent, monkeypatch):
    if not lent:
        monkeypatch.setattr(backends, "_parallel_for", lambda: None)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            leaves = [tensor.requires_grad_() for tensor in arguments((3, 48, 70, 33), "shared", torch.float32)]
            y = modulate(*leaves)
            dy = randn(y.shape, 5, torch.float32).requires_grad_()
            first = torch.autograd.grad(y, leaves, dy, create_graph=True)
            results.append((y, *first, *torch.autograd.grad(first, (dy, *leaves), [randn(g.shape, 6, torch.float32) for g in first])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@needs_cxx
@pytest.mark.parametrize("appended", ["none", "per-sample", "shared"])
def test_registered_operators_opcheck(appended):
    x, styles, maps = (None if tensor is None else tensor.requires_grad_() for tensor in arguments((2, 20, 5, 6), appended, torch.float32))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    ops = torch.ops.raycond
    torch.library.opcheck(ops.modulate_cpu.default, (x, styles, maps), test_utils=checks)
    dy = randn([2, styles.shape[1], 5, 6], 5, torch.float32).requires_grad_()
    for wanted in ([True, True, maps is not None], [True, False, False], [False, True, False]):
        torch.library.opcheck(ops.modulate_cpu_gradients.default, (dy, x, styles, maps, 20, wanted), test_utils=checks)


@pytest.mark.parametrize("why", ["no compiler", "reference mode", "double", "empty"])
def test_the_definition_serves_elsewhere(why, monkeypatch):
    monkeypatch.setattr(custom_ops, "_paths", {})
    monkeypatch.setattr(custom_ops, "_libraries", {})
    monkeypatch.setattr(custom_ops, "verbosity", "none")
    if why != "empty":
        monkeypatch.setattr(cpu, "modulate", None)
    if why == "no compiler":
        monkeypatch.setenv("CXX", "/nowhere/c++")
    if why == "reference mode":
        monkeypatch.setenv("RAYCOND_OPS", "reference")
    x, styles, appended = arguments((0 if why == "empty" else 2, 20, 6, 5), "shared", torch.float64 if why == "double" else torch.float32)
    y = modulate(x, styles, appended)
    assert torch.equal(y, torch.cat([x, appended.expand(len(x), -1, -1, -1)], 1) * styles[:, :, None, None])


@pytest.mark.parametrize("kwargs, complaint", [
    (dict(x=torch.zeros(3, 4, 4)), r"x of shape \[3, 4, 4\]"),
    (dict(styles=torch.zeros(2, 4)), r"styles have shape \[2, 4\], expected \[2, 3\]"),
    (dict(appended=torch.zeros(3, 1, 4, 4)), r"appended has shape \[3, 1, 4, 4\], expected \[2 or 1, E, 4, 4\]"),
    (dict(styles=torch.zeros(2, 3).double()), "styles: torch.float64"),
    (dict(impl="cpu"), "impl 'cpu'"),
])
def test_errors_name_the_value(kwargs, complaint):
    with pytest.raises(AssertionError, match=complaint):
        modulate(**{"x": torch.zeros(2, 3, 4, 4), "styles": torch.zeros(2, 3), **kwargs})


@needs_cxx
@pytest.mark.parametrize("N, O, I, kernel", [(1, 64, 70, 3), (3, 33, 18, 1), (2, 16, 5, 3)])
def test_demodulation(N, O, I, kernel, monkeypatch):
    """Against the norm of every sample's kernels; with gradients the same number."""
    weight, styles = torch.randn(O, I, kernel, kernel), torch.randn(N, I)
    expected = (weight.double() * styles.double()[:, None, :, None, None]).square().sum([2, 3, 4]).add(1e-8).rsqrt()
    used = []
    monkeypatch.setattr(cpu, "energies", lambda *args, function=cpu.energies: used.append(1) or function(*args))
    for w, s in ((weight, styles), (weight.clone().requires_grad_(), styles)):
        torch.testing.assert_close(demodulation(w, s).double(), expected, rtol=1e-5, atol=0)
    assert used == [1]
    torch.testing.assert_close(demodulation(weight, styles, impl="ref").double(), expected, rtol=1e-5, atol=0)


@needs_cxx
def test_demodulation_is_a_registered_operator():
    torch.library.opcheck(torch.ops.raycond.modulate_cpu_energies.default, (torch.randn(5, 36), torch.randn(2, 36)))
