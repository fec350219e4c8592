"""bias_act in C++ for CPUs: against the definition in double precision with first and second gradients, layouts, threads, what it leaves alone."""

import shutil

import numpy as np
import pytest
import torch
from helpers import assert_close_rel

from torch_utils import custom_ops
from torch_utils.ops import backends, bias_act
from torch_utils.ops.bias_act import Settings, cpu, plain

needs_cxx = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler: nothing can be compiled for the CPU")

SHAPES = [(1, 16, 4, 4), (2, 20, 9, 7), (3, 35, 16, 16), (1, 64, 40, 33), (2, 512, 4, 4)]
NOISES = {"none": None, "per-sample": lambda n, h, w: (n, 1, h, w), "shared": lambda n, h, w: (1, 1, h, w), "plane": lambda n, h, w: (h, w)}
SETTINGS = {
    "linear":       dict(act="linear", gain=1.5),
    "linear-clamp": dict(act="linear", clamp=0.8),
    "relu":         dict(act="relu"),
    "lrelu":        dict(act="lrelu"),
    "lrelu-clamp":  dict(act="lrelu", alpha=0.3, gain=0.7, clamp=0.6),
}


@pytest.fixture(autouse=True)
def take_small_ones_too(monkeypatch):
    monkeypatch.setattr(cpu, "LEAST_ELEMENTS", 0)


def randn(shape, seed, dtype=torch.float64, memory_format=torch.contiguous_format):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(torch.float32).to(dtype).to(memory_format=memory_format)


def arguments(shape, noise, scaled, biased, dtype):
    N, C, H, W = shape
    x = randn(shape, 0, dtype, torch.channels_last)
    rest = dict(b=randn([C], 1, dtype) if biased else None, scale=randn([N, C], 2, dtype) if scaled else None,
                noise=None if NOISES[noise] is None else randn(NOISES[noise](N, H, W), 3, dtype))
    return x, rest


def both_orders(x, rest, impl, wanted, **settings):
    """y, the first gradients, and those of a nonlinear function of the first."""
    inputs = {name: tensor.requires_grad_(name in wanted) for name, tensor in dict(x=x, **rest).items() if tensor is not None}
    y = bias_act.scaled_bias_act(x, **rest, **settings, impl=impl)
    dy = randn(y.shape, 5, y.dtype).requires_grad_()
    leaves = {name: tensor for name, tensor in inputs.items() if name in wanted}
    first = torch.autograd.grad(y, list(leaves.values()), dy, create_graph=True)
    energy = sum((gradient.pow(2) * randn(gradient.shape, 6, y.dtype)).sum() / gradient.detach().square().mean() for gradient in first)
    second = torch.autograd.grad(energy, [dy, *leaves.values()], create_graph=True, allow_unused=True, materialize_grads=True)
    return dict(zip(["y", *leaves, "d_dy", *(f"d_{name}" for name in leaves)], (y, *first, *second)))


def assert_same(actual, expected, tolerance=3e-5):
    for name, value in expected.items():
        assert_close_rel(actual[name], value, tolerance, name)


@needs_cxx
@pytest.mark.parametrize("noise, scaled, biased", [("none", False, True), ("per-sample", True, True), ("shared", True, False), ("plane", False, True),
                                                   ("plane", True, True), ("none", True, True), ("per-sample", False, False)])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_definition(shape, setting, noise, scaled, biased):
    x, rest = arguments(shape, noise, scaled, biased, torch.float64)
    wanted = {"x", *(name for name, tensor in rest.items() if tensor is not None)}
    expected = both_orders(x, rest, "ref", wanted, **SETTINGS[setting])
    x, rest = arguments(shape, noise, scaled, biased, torch.float32)
    assert cpu.takes(x, Settings(1, SETTINGS[setting]["act"], 0.2, 1.0, -1.0))
    actual = both_orders(x, rest, "cuda", wanted, **SETTINGS[setting])
    assert "BiasActCpu" in type(actual["y"].grad_fn).__name__ or "bias_act_cpu" in type(actual["y"].grad_fn).__name__
    assert all(value.abs().max() > 0 for name, value in expected.items() if not name.startswith("d_"))
    assert_same(actual, expected)
    assert actual["y"].is_contiguous(memory_format=torch.channels_last)


@needs_cxx
@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="elsewhere PyTorch may round products before it adds")
@pytest.mark.parametrize("clamp", [None, 0.9])
@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_rounds_as_the_plain_path(act, clamp):
    """To the bit, so that a training run with ReLUs at their edge does not part from its reference by which path it takes."""
    x, rest = arguments((2, 40, 31, 17), "plane", False, True, torch.float32)
    for noise in (None, rest["noise"]):
        for gain in (1.0, 2 ** 0.5, 0.7):
            for b in (None, rest["b"]):
                leaf = x.clone().requires_grad_()
                v = leaf if noise is None else leaf + noise
                settings = Settings(1, act, 0.2, gain, -1.0 if clamp is None else clamp)
                expected = plain.bias_act(v, b, settings)
                y = cpu.bias_act(leaf, b, None, noise, settings, inplace=False)
                assert torch.equal(y, expected)
                dy = randn(x.shape, 5, torch.float32)
                assert torch.equal(torch.autograd.grad(y, leaf, dy)[0], torch.autograd.grad(expected, leaf, dy)[0])


@needs_cxx
@pytest.mark.parametrize("wanted", [{"x"}, {"b"}, {"scale"}, {"noise"}, {"x", "scale"}, {"scale", "noise"}], ids=lambda names: "+".join(sorted(names)))
def test_some_gradients_alone(wanted):
    shape, settings = (2, 24, 10, 6), SETTINGS["lrelu-clamp"]
    results = [both_orders(*arguments(shape, "plane", True, True, dtype), impl, wanted, **settings)
               for dtype, impl in ((torch.float64, "ref"), (torch.float32, "cuda"))]
    assert_same(results[1], results[0])


@needs_cxx
def test_third_order():
    """The operators are one another's derivatives, so that any order exists."""
    results = []
    for dtype, impl in ((torch.float64, "ref"), (torch.float32, "cuda")):
        x, rest = arguments((2, 16, 6, 6), "per-sample", True, True, dtype)
        leaves = [tensor.requires_grad_() for tensor in (x, *rest.values())]
        y = bias_act.scaled_bias_act(x, **rest, act="lrelu", impl=impl)
        for _ in range(3):
            gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            y = gradients[0] + gradients[2][:, :, None, None] / 30
        results.append(dict(zip("x b scale noise".split(), gradients)))
    assert all(value.abs().max() > 0 for value in results[0].values())
    assert_same(results[1], results[0], 1e-4)


@needs_cxx
def test_third_order_of_the_change_along_directions():
    """In x and scale, which the second gradients have as factors."""
    results = []
    for dtype, impl in ((torch.float64, "ref"), (torch.float32, "cuda")):
        x, rest = arguments((2, 16, 6, 6), "plane", True, True, dtype)
        leaves = [tensor.requires_grad_() for tensor in (x, *rest.values())]
        y = bias_act.scaled_bias_act(x, **rest, act="lrelu", clamp=2.0, impl=impl)
        dy = randn(y.shape, 5, dtype).requires_grad_()
        first = torch.autograd.grad(y, leaves, dy, create_graph=True)
        directions = [randn(g.shape, 7 + i, dtype).requires_grad_() for i, g in enumerate(first)]
        change, = torch.autograd.grad(first, dy, directions, create_graph=True)
        results.append(dict(enumerate(torch.autograd.grad(change.square().sum(), [*directions, leaves[0], leaves[2]]))))
    assert all(value.abs().max() > 0 for value in results[0].values())
    assert_same(results[1], results[0])


@needs_cxx
def test_a_constant_gradient_has_zero_derivatives():
    """dx of a linear loss does not depend on x: zeros, not missing gradients."""
    x = randn((1, 16, 8, 8), 0, torch.float32, torch.channels_last).requires_grad_()
    b = randn([16], 1, torch.float32).requires_grad_()
    dx, = torch.autograd.grad(bias_act.scaled_bias_act(x, b, act="lrelu").sum(), x, create_graph=True)
    for zero in torch.autograd.grad(dx.square().sum(), (x, b)):
        assert torch.equal(zero, torch.zeros_like(zero))


@needs_cxx
@pytest.mark.parametrize("setting", SETTINGS)
def test_registered_operators_opcheck(setting):
    x, rest = arguments((2, 20, 5, 6), "plane", True, True, torch.float32)
    x, b, scale, noise = (tensor.requires_grad_() for tensor in (x, *rest.values()))
    ops = torch.ops.raycond
    numbers = (0.2, 1.4, 0.5)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    y = ops.bias_act_cpu.default(x, b, scale, noise, *numbers).detach().requires_grad_()
    torch.library.opcheck(ops.bias_act_cpu.default, (x, b, scale, noise, *numbers), test_utils=checks)
    torch.library.opcheck(ops.bias_act_cpu.default, (x.detach().contiguous(), None, None, None, *numbers), test_utils=checks)
    torch.library.opcheck(ops.bias_act_cpu_.default, (x.detach().clone(), b.detach(), None, noise.detach(), *numbers), test_utils=checks)
    for wanted in ([True] * 4, [True, False, False, True], [False, True, True, False]):
        torch.library.opcheck(ops.bias_act_cpu_gradients.default, (x, x, y, scale, *numbers, wanted), test_utils=checks)
    torch.library.opcheck(ops.bias_act_cpu_along.default, (x, b, scale, noise, x, y, scale, list(x.shape), *numbers), test_utils=checks)
    torch.library.opcheck(ops.bias_act_cpu_along.default, (None, b, None, None, None, None, None, list(x.shape), *numbers), test_utils=checks)


@needs_cxx
@pytest.mark.parametrize("with_torch", [True, False])
def test_threads_change_no_bit(with_torch, monkeypatch):
    """Pieces of work depend on the shape alone and their sums are taken in order."""
    if not with_torch:
        monkeypatch.setattr(backends, "_parallel_for", lambda: None)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            x, rest = arguments((3, 48, 70, 33), "plane", True, True, torch.float32)
            leaves = [tensor.requires_grad_() for tensor in (x, *rest.values())]
            y = bias_act.scaled_bias_act(x, **rest, act="lrelu", clamp=1.0)
            dy = randn(y.shape, 5, torch.float32).requires_grad_()
            first = torch.autograd.grad(y, leaves, dy, create_graph=True)
            directions = [randn(gradient.shape, 6, torch.float32) for gradient in first]
            results.append((y, *first, *torch.autograd.grad(first, (dy, x, rest["scale"]), directions)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@needs_cxx
def test_large_sums_are_accurate():
    """2^18 summands of one sign: off by the roundings of the 64 that are summed in single precision, not by those of all."""
    allowed = 64 * 2.0 ** -24
    total = 0.1 * 2 ** 18
    assert abs(np.add.accumulate(np.full(2 ** 18, 0.1, np.float32))[-1] / total - 1) > 10 * allowed
    x = torch.ones([1, 16, 512, 512]).to(memory_format=torch.channels_last).requires_grad_()
    b, scale = torch.zeros([16], requires_grad=True), torch.full([1, 16], 0.3, requires_grad=True)
    for gradient in torch.autograd.grad(bias_act.scaled_bias_act(x, b, scale=scale, act="linear").sum() * 0.1, (b, scale)):
        assert (gradient.double() / total - 1).abs().max() < allowed


@needs_cxx
def test_overwrites_only_on_request_and_without_autograd():
    x, rest = arguments((2, 20, 5, 6), "plane", True, True, torch.float32)
    expected = bias_act.scaled_bias_act(x.double(), **{name: tensor.double() for name, tensor in rest.items()}, act="lrelu", impl="ref")
    before = x.clone()
    for kwargs in (dict(), dict(inplace=False)):
        y = bias_act.scaled_bias_act(x, **rest, act="lrelu", **kwargs)
        assert torch.equal(x, before) and y.data_ptr() != x.data_ptr()
    rest["b"].requires_grad_()
    y = bias_act.scaled_bias_act(x, **rest, act="lrelu", inplace=True)
    assert torch.equal(x, before) and y.data_ptr() != x.data_ptr() and y.requires_grad
    with torch.no_grad():
        y = bias_act.scaled_bias_act(x, **rest, act="lrelu", inplace=True)
    assert y is x
    assert_close_rel(y, expected, 1e-6)


@needs_cxx
def test_autograd_notices_that_x_was_overwritten():
    x = randn((1, 16, 8, 8), 0, torch.float32, torch.channels_last)
    factor = torch.ones([], requires_grad=True)
    product = x * factor
    with torch.no_grad():
        bias_act.scaled_bias_act(x, act="lrelu", inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@needs_cxx
def test_input_is_kept_only_for_the_scales_gradient():
    x, rest = arguments((1, 16, 8, 8), "plane", True, True, torch.float32)
    for scale_learns in (False, True):
        leaf = x.clone().requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):    # noqa: B023
            bias_act.scaled_bias_act(leaf, rest["b"], scale=rest["scale"].requires_grad_(scale_learns), act="lrelu")
        assert (leaf.data_ptr() in kept) == scale_learns


@needs_cxx
@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_what_is_not_finite(act):
    x = randn((1, 16, 4, 4), 0, torch.float32, torch.channels_last)
    x[0, 0, 0, 0], x[0, 1, 0, 0], x[0, 2, 0, 0] = float("nan"), float("inf"), -float("inf")
    for clamp in (None, 2.0):
        expected = bias_act.scaled_bias_act(x, act=act, clamp=clamp, impl="ref")
        settings = Settings(1, act, 0.2, bias_act.activation_funcs[act].def_gain, -1.0 if clamp is None else clamp)
        torch.testing.assert_close(cpu.bias_act(x, None, None, None, settings, inplace=False), expected, equal_nan=True)


@pytest.mark.parametrize("case", ["contiguous", "sliced", "few channels", "double", "tanh", "negative gain", "other dimension", "vector"])
def test_what_it_leaves_to_the_plain_path(case, monkeypatch):
    monkeypatch.setattr(cpu, "bias_act", None)
    x = randn((2, 32, 6, 6), 0, torch.float32, torch.channels_last)
    kwargs = dict(act="tanh") if case == "tanh" else dict(gain=-1.0) if case == "negative gain" else dict(dim=2) if case == "other dimension" else {}
    x = dict(contiguous=lambda: x.contiguous(), sliced=lambda: x[:, ::2], double=lambda: x.double(), vector=lambda: x[0, :, :, 0]).get(case, lambda: x)()
    x = x[:, :3].contiguous(memory_format=torch.channels_last) if case == "few channels" else x
    kwargs = dict(act="lrelu", **kwargs) if "act" not in kwargs else kwargs
    b = randn([x.shape[kwargs.get("dim", 1)]], 1, x.dtype)
    assert_close_rel(bias_act.scaled_bias_act(x, b, **kwargs), bias_act.scaled_bias_act(x.double(), b.double(), **kwargs, impl="ref"), 1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("scaled", [False, True])
def test_scale_and_noise_without_a_compiler(scaled, noise, memory_format, monkeypatch):
    """The plain path composes them; so does that of other dtypes, and swish."""
    monkeypatch.setattr(custom_ops, "_paths", {})
    monkeypatch.setattr(custom_ops, "_libraries", {})
    monkeypatch.setattr(custom_ops, "verbosity", "none")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setattr(cpu, "bias_act", None)
    for act in ("lrelu", "swish"):
        results = []
        for dtype, impl in ((torch.float64, "ref"), (torch.float32, "cuda")):
            x, rest = arguments((2, 16, 6, 5), noise, scaled, True, dtype)
            wanted = {"x", *(name for name, tensor in rest.items() if tensor is not None)}
            results.append(both_orders(x.to(memory_format=memory_format), rest, impl, wanted, act=act))
        assert_same(results[1], results[0])
    assert custom_ops.path("bias_act", "cpu") == "plain"


def test_reference_mode(monkeypatch):
    monkeypatch.setenv("RAYCOND_OPS", "reference")
    monkeypatch.setattr(cpu, "bias_act", None)
    monkeypatch.setattr(plain, "bias_act", None)
    x, rest = arguments((1, 16, 4, 4), "plane", True, True, torch.float32)
    v = x * rest["scale"][:, :, None, None] + rest["noise"] + rest["b"][:, None, None]
    assert_close_rel(bias_act.scaled_bias_act(x, **rest, act="relu", gain=1), v.clamp(min=0), 1e-6)


@pytest.mark.parametrize("kwargs, complaint", [
    (dict(scale=torch.zeros([3])), r"scale has shape \[3\], expected \[N, C\]"),
    (dict(scale=torch.zeros([2, 3]).double()), "scale is torch.float64"),
    (dict(noise=torch.zeros([2, 3, 4, 4])), r"noise has shape \[2, 3, 4, 4\]"),
    (dict(noise=torch.zeros([4])), r"noise has shape \[4\]"),
    (dict(scale=torch.zeros([2, 3]), dim=2), "dim 2"),
    (dict(x=torch.zeros([2, 3]), scale=torch.zeros([2, 3])), "scale with x"),
])
def test_wrong_arguments(kwargs, complaint):
    with pytest.raises(AssertionError, match=complaint):
        bias_act.scaled_bias_act(**{"x": torch.zeros([2, 3, 4, 4]), **kwargs})
