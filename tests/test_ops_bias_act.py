"""bias_act: stored numbers, definition against fast path, gradients of the registered operators, layouts, dtypes, edges."""

import json

import numpy as np
import pytest
import torch
from helpers import assert_close_rel, load_golden

from torch_utils.ops import bias_act
from torch_utils.ops.bias_act import Settings, activation_funcs, operator, plain, reference

GOLDEN = load_golden("bias_act.npz")
CASES = [json.loads(case) for case in GOLDEN["cases"]]
ACTS = list(activation_funcs)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def golden(index, name):
    key = f"{index}/{name}"
    return torch.from_numpy(GOLDEN[key]) if key in GOLDEN else None


def features(shape, dtype=torch.float64, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(dtype)


def by_operator(x, b, dim=1, act="linear", alpha=None, gain=None, clamp=None):
    row = activation_funcs[act]
    return operator.bias_act(x, b, Settings(dim, act, row.def_alpha if alpha is None else alpha, row.def_gain if gain is None else gain,
                                            -1.0 if clamp is None else clamp))


PATHS = {
    "plain":    lambda *args, **kwargs: bias_act.bias_act(*args, **kwargs, impl="cuda"),
    "ref":      lambda *args, **kwargs: bias_act.bias_act(*args, **kwargs, impl="ref"),
    "operator": by_operator,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("index", range(len(CASES)))
def test_golden(index, path):
    x, b = golden(index, "x").requires_grad_(), golden(index, "b").requires_grad_()
    y = PATHS[path](x, b, **CASES[index])
    assert_close_rel(y, golden(index, "y"), 2e-4, "y")
    if golden(index, "dy") is None:
        return
    dy = golden(index, "dy").requires_grad_()
    dx, db = torch.autograd.grad(y, (x, b), dy, create_graph=True)
    assert_close_rel(dx, golden(index, "dx"), 1e-3, "dx")
    assert_close_rel(db, golden(index, "db"), 1e-3, "db")
    d_dy, d_x = torch.autograd.grad((dx * golden(index, "v")).sum(), (dy, x), allow_unused=True, materialize_grads=True)
    assert_close_rel(d_dy, golden(index, "d_dy"), 1e-3, "d_dy")
    assert_close_rel(d_x, golden(index, "d_x"), 1e-3, "d_x")


@pytest.mark.parametrize("clamp", [None, 0.6])
@pytest.mark.parametrize("act", ACTS)
def test_registered_operator_gradients(act, clamp):
    """The formulas that the CUDA kernels run under, on the operators' CPU kernels."""
    x, b = features((2, 3, 4)).requires_grad_(), features((3,), seed=1).requires_grad_()
    fn = lambda x, b: by_operator(x, b, act=act, alpha=0.3, gain=1.7, clamp=clamp)     # noqa: E731
    assert torch.autograd.gradcheck(fn, (x, b))
    assert torch.autograd.gradgradcheck(fn, (x, b))


@pytest.mark.parametrize("clamp", [None, 0.6])
@pytest.mark.parametrize("act", ACTS)
def test_plain_path_gradients(act, clamp):
    x, b = features((2, 3, 4)).requires_grad_(), features((3,), seed=1).requires_grad_()
    fn = lambda x, b: bias_act.bias_act(x, b, act=act, alpha=0.3, gain=1.7, clamp=clamp)   # noqa: E731
    assert torch.autograd.gradcheck(fn, (x, b))
    assert torch.autograd.gradgradcheck(fn, (x, b))


@pytest.mark.parametrize("act", ACTS)
def test_derivative_formulas(act):
    """slope_at and bend_at against autograd of the activation."""
    v = features((64,)).requires_grad_()
    u = activation_funcs[act].func(v, 0.3)
    slope, = torch.autograd.grad(u.sum(), v, create_graph=True)
    point = (v if activation_funcs[act].ref == "x" else u).detach().requires_grad_()
    formula = plain.slope_at(act, point, 0.3)
    assert_close_rel(formula, slope, 1e-10, "slope")
    bend = torch.autograd.grad(formula.sum(), point, allow_unused=True, materialize_grads=True)[0] if formula.requires_grad else torch.zeros_like(v)
    assert_close_rel(plain.bend_at(act, point, 0.3), bend, 1e-10, "bend")
    assert activation_funcs[act].has_2nd_grad == bool(bend.abs().max() > 0)


@pytest.mark.parametrize("act, memory_format", [("lrelu", "channels_last"), ("swish", "contiguous")])
def test_registered_operators_opcheck(act, memory_format):
    x = features((2, 3, 4, 5), torch.float32).to(memory_format=FORMATS[memory_format]).requires_grad_()
    b = features((3,), torch.float32, seed=1).requires_grad_()
    settings = (1, act, 0.2, 1.3, 0.7)
    torch.library.opcheck(torch.ops.raycond.bias_act.default, (x, b, *settings))
    torch.library.opcheck(torch.ops.raycond.bias_act_grad.default, (x, x.detach().requires_grad_(), None if act != "swish" else b, *settings))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("clamp", [None, 0.5])
@pytest.mark.parametrize("gain", [None, 1.0, -0.7])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("act", ACTS)
def test_fast_path_equals_definition(act, memory_format, gain, clamp, grad):
    """In-place work must neither change the answer nor touch the input."""
    x = features((2, 6, 5, 7), torch.float32).to(memory_format=FORMATS[memory_format])
    b = features((6,), torch.float32, seed=1)
    before = x.clone()
    for bias in (b, None):
        expected = bias_act.bias_act(x, bias, act=act, gain=gain, clamp=clamp, impl="ref")
        y = bias_act.bias_act(x.clone().requires_grad_() if grad else x, bias, act=act, gain=gain, clamp=clamp)
        assert_close_rel(y, expected, 1e-6)
        assert y.is_contiguous(memory_format=FORMATS[memory_format])
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("act", ACTS)
def test_low_precision(act, dtype):
    """At most twice what the definition loses in that dtype (plus one rounding)."""
    x, b = features((3, 8, 9), dtype), features((8,), dtype, seed=1)
    exact = bias_act.bias_act(x.double(), b.double(), act=act, clamp=2.0, impl="ref")
    lost = (bias_act.bias_act(x, b, act=act, clamp=2.0, impl="ref").double() - exact).abs().max()
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    for path in ("plain", "operator"):
        y = PATHS[path](x, b, act=act, clamp=2.0)
        assert y.dtype == dtype
        assert (y.double() - exact).abs().max() <= 2 * lost + rounding, path


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape, dim", [((5,), 0), ((4, 6), 1), ((4, 6), 0), ((2, 3, 4), 2), ((2, 3, 1, 1), 1), ((0, 3, 4, 4), 1), ((3, 0), 0)])
def test_shapes(path, shape, dim):
    x, b = features(shape).requires_grad_(), features((shape[dim],), seed=1).requires_grad_()
    y = PATHS[path](x, b, dim=dim, act="lrelu")
    v = x.movedim(dim, -1) + b
    expected = torch.maximum(v, v / 5) * np.sqrt(2)
    assert_close_rel(y, expected.movedim(-1, dim), 1e-10)
    dx, db = torch.autograd.grad(y.sum(), (x, b))
    assert dx.shape == x.shape and db.shape == b.shape


def test_overlapping_and_sliced_inputs():
    for x in (features((1, 4, 1)).expand(3, 4, 5), features((3, 8, 10))[:, ::2, 1::2], features((4, 3, 5)).transpose(0, 1)):
        assert_close_rel(by_operator(x, features((4,)), act="lrelu"), bias_act.bias_act(x, features((4,)), act="lrelu", impl="ref"), 1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("act", ACTS)
def test_gradient_is_zero_where_clamped(act, path):
    x = torch.full([1, 2, 3], 3.0, dtype=torch.float64, requires_grad=True)
    y = PATHS[path](x, None, act=act, gain=1.0, clamp=0.1)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_second_gradient_in_x_is_zero_for_piecewise_linear(act, path):
    x, dy = features((2, 3, 4)).requires_grad_(), features((2, 3, 4), seed=2).requires_grad_()
    y = PATHS[path](x, features((3,), seed=1), act=act)
    dx, = torch.autograd.grad(y, x, dy, create_graph=True)
    d_x, d_dy = torch.autograd.grad(dx.square().sum(), (x, dy), allow_unused=True, materialize_grads=True)
    assert d_x.abs().max() == 0 and d_dy.abs().max() > 0


def test_third_derivative_is_refused_not_wrong():
    x = features((2, 3)).requires_grad_()
    dx, = torch.autograd.grad(by_operator(x, None, act="tanh").sum(), x, create_graph=True)
    ddx, = torch.autograd.grad(dx.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivatives"):
        torch.autograd.grad(ddx.sum(), x)


def test_published_constants():
    gains = {name: row.def_gain for name, row in activation_funcs.items()}
    assert [name for name, gain in gains.items() if gain != 1] == ["relu", "lrelu", "swish"]
    assert all(gains[name] == pytest.approx(np.sqrt(2)) for name in ("relu", "lrelu", "swish"))
    assert activation_funcs["lrelu"].def_alpha == 0.2


@pytest.mark.parametrize("kwargs, complaint", [
    (dict(act="gelu"), "activation 'gelu'"),
    (dict(b=torch.zeros([4])), "expected \\[3\\]"),
    (dict(b=torch.zeros([3], dtype=torch.float64)), "b is torch.float64"),
    (dict(b=torch.zeros([3]), dim=4), "dim 4"),
    (dict(clamp=-1), "clamp -1"),
    (dict(impl="native"), "impl 'native'"),
])
def test_wrong_arguments(kwargs, complaint):
    with pytest.raises(AssertionError, match=complaint):
        bias_act.bias_act(torch.zeros([2, 3, 4]), **kwargs)


def test_plain_and_reference_share_a_signature():
    assert plain.bias_act.__annotations__ == reference.bias_act.__annotations__
