"""filtered_lrelu: stored numbers, definition against fast paths, gradients of any order, layouts, dtypes, edges, errors."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import assert_close_rel, load_golden
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_utils import custom_ops
from torch_utils.ops import backends, filtered_lrelu, upfirdn2d
from torch_utils.ops.filtered_lrelu import Settings, cpu, operator, plain, reference

needs_cxx = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler: nothing can be compiled for the CPU")

GOLDEN = load_golden("filtered_lrelu.npz")
CASES = [json.loads(case) for case in GOLDEN["cases"]]

# (taps of fu, taps of fd, up, down, (left, right, top, bottom), gain, slope, clamp, flip_filter)
SETTINGS = {
    "same-rate":        (12, 12, 2, 2, (9, 8, 9, 8), 1.4, 0.2, None, False),
    "up":               (24, 12, 4, 2, (-6, -9, -5, -9), 1.4, 0.2, 256, False),
    "clamped":          (12, 12, 2, 2, (9, 8, 9, 8), 1.4, 0.2, 0.3, True),
    "odd-factors":      (7, 4, 3, 3, (-1, 2, 30, -4), 0.5, 0.1, 1.0, False),
    "down4":            (5, 9, 1, 4, (3, 5, 0, 7), 1.0, 0.0, 0.6, False),
    "only-fu":          (6, None, 2, 1, (3, 2, 3, 2), 1.0, 0.2, None, True),
    "only-fd":          (None, 9, 2, 4, (4, 4, 4, 4), 2.0, -0.3, 0.4, True),
    "no-filter":        (None, None, 1, 1, (1, -2, 0, 3), 1.4, 0.2, 0.5, False),
    "negative-gain":    (4, 4, 2, 1, (2, 2, 2, 2), -1.3, 0.2, 0.7, False),
    "beyond-the-image": (3, 3, 1, 1, (40, 1, 1, 300), 1.0, 0.2, None, False),     # whole blocks of the band matrices meet padding alone
    "2d-fd":            (12, (12, 12), 2, 2, (11, 10, 11, 10), 1.4, 0.2, 256, False),
    "2d-fu":            ((4, 6), 5, 3, 2, (5, 6, 7, 8), 2.0, 0.0, 1.5, True),
}
SEPARABLE = [name for name, row in SETTINGS.items() if not isinstance(row[0], tuple) and not isinstance(row[1], tuple) and name != "no-filter"]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def taps(size, seed):
    return None if size is None else torch.from_numpy(np.random.RandomState(seed).uniform(-0.5, 1, size).astype(np.float32))


def arguments(setting):
    fu, fd, up, down, padding, gain, slope, clamp, flip = SETTINGS[setting]
    return taps(fu, 1), taps(fd, 2), dict(up=up, down=down, padding=padding, gain=gain, slope=slope, clamp=clamp, flip_filter=flip)


def in_one(settings):
    """As the functions of a single path take them."""
    return Settings(**dict(settings, clamp=-1.0 if settings["clamp"] is None else settings["clamp"]))


def image(shape, dtype=torch.float64, memory_format=torch.contiguous_format, seed=3):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(dtype).to(memory_format=memory_format)


def bias(channels, dtype=torch.float64):
    return torch.from_numpy(np.random.RandomState(4).standard_normal(channels)).to(dtype)


def change_of_sides(x, fu, fd, b, dy, up, down, padding, gain, slope, clamp, flip_filter):
    """How far dx can be off where samples at the higher rate lie within rounding of a bend: of 0 or of +-clamp, to 1e-6 of the largest."""
    x, b, dy = (t.detach().double() for t in (x, b, dy))
    p = upfirdn2d.upfirdn2d(x + b[:, None, None], fu, up=up, padding=padding, gain=up ** 2, flip_filter=flip_filter, impl="ref")
    bent = gain * torch.where(p < 0, slope * p, p)
    rounding = 1e-6 * float(p.abs().max())
    unsure = p.abs() <= rounding
    if clamp is not None:
        unsure |= (bent.abs() - clamp).abs() <= rounding * gain
    fu, fd = (None if f is None else f.abs() for f in (fu, fd))
    q = torch.zeros_like(p, requires_grad=True)
    reach, = torch.autograd.grad(upfirdn2d.upfirdn2d(q, fd, down=down, flip_filter=flip_filter, impl="ref"), q, dy.abs())
    x = torch.zeros_like(x, requires_grad=True)
    wide = upfirdn2d.upfirdn2d(x, fu, up=up, padding=padding, gain=up ** 2, flip_filter=flip_filter, impl="ref")
    return torch.autograd.grad(wide, x, unsure * reach * gain)[0]


@pytest.mark.parametrize("impl", ["cuda", "ref"])
@pytest.mark.parametrize("index", range(len(CASES)))
def test_golden(index, impl):
    """Where rounding decides the side of an activation, a gradient may be what it is on either side; few are."""
    stored = {key.split("/")[1]: torch.from_numpy(value) for key, value in GOLDEN.items() if key.startswith(f"{index}/")}
    x, b = stored["x"].requires_grad_(), stored["b"].requires_grad_()
    y = filtered_lrelu.filtered_lrelu(x, stored.get("fu"), stored.get("fd"), b, **CASES[index], impl=impl)
    assert_close_rel(y, stored["y"], 2e-4, "y")
    dx, db = torch.autograd.grad(y, (x, b), stored["dy"])
    either = change_of_sides(x, stored.get("fu"), stored.get("fd"), b, stored["dy"], **CASES[index])
    assert (either > 0).double().mean() < 0.1
    for actual, expected, allowed in ((dx, stored["dx"], either), (db, stored["db"], either.sum([0, 2, 3]))):
        assert ((actual - expected).abs() <= 1e-3 * expected.abs().max() + allowed).all()


def test_definition_on_paper():
    """One row, by NumPy: zeros between the samples, full convolutions, every second sample."""
    x, fu, fd, slope, gain, clamp = np.array([1.0, -2.0, 4.0, -3.0]), np.array([0.5, 1.0, 3.0]), np.array([2.0, -1.0, 0.25]), 0.1, 1.5, 8.0
    stuffed = np.zeros(8)
    stuffed[::2] = x + 0.5
    high = np.convolve(np.pad(stuffed, (2, 1)), fu, mode="valid") * 2
    bent = np.clip(gain * np.where(high > 0, high, slope * high), -clamp, clamp)
    assert (np.abs(bent) == clamp).any() and (np.abs(bent) < clamp).any()
    expected = np.convolve(bent, fd, mode="valid")[::2]

    # A second axis that changes nothing: single taps at one end, and a factor of 2 twice for up ** 2 = 4.
    row = torch.from_numpy(x).view(1, 1, 1, 4)
    y = filtered_lrelu.filtered_lrelu(row, torch.tensor(fu, dtype=torch.float32).view(1, 3) / 2, torch.tensor(fd, dtype=torch.float32).view(1, 3),
                                      torch.tensor([0.5], dtype=torch.float64), up=2, down=2, padding=[2, 1, 0, 0], gain=gain, slope=slope, clamp=clamp)
    np.testing.assert_allclose(y[0, 0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_fast_path_equals_definition(setting, memory_format):
    """Values, first gradients, and second ones of a nonlinear function of the first."""
    fu, fd, settings = arguments(setting)
    results = []
    for impl in ("ref", "cuda"):
        x = image((2, 3, 13, 16), memory_format=FORMATS[memory_format]).requires_grad_()
        b = bias(3).requires_grad_()
        y = filtered_lrelu.filtered_lrelu(x, fu, fd, b, **settings, impl=impl)
        dy = image(y.shape, seed=5).requires_grad_()
        dx, db = torch.autograd.grad(y, (x, b), dy, create_graph=True)
        results.append((y, dx, db, *torch.autograd.grad(dx.square().sum() + db.pow(3).sum(), (dy, x))))
    for what, expected, actual in zip(("y", "dx", "db", "d_dy", "ddx"), *results):
        assert what == "ddx" or expected.abs().max() > 0
        assert_close_rel(actual, expected, 1e-10, what)
    assert results[1][0].is_contiguous(memory_format=FORMATS[memory_format])


@needs_cxx
@pytest.mark.parametrize("channels", [1, 16, 35])
@pytest.mark.parametrize("setting", SEPARABLE)
def test_compiled_for_cpus(setting, channels):
    """The C++ path against band matrices in double precision: values, gradients, and gradients of those; whole and in pieces."""
    fu, fd, settings = arguments(setting)
    x = image((2, channels, 40, 37), torch.float32, torch.channels_last)
    results = []
    for dtype in (torch.float64, torch.float32):
        v, b = x.to(dtype).requires_grad_(), bias(channels, dtype).requires_grad_()
        assert operator._is_native(v) == (dtype == torch.float32)
        y = operator.filtered_lrelu(v, fu, fd, b, in_one(settings))
        dy = image(y.shape, dtype, seed=5).requires_grad_()
        dx, db = torch.autograd.grad(y, (v, b), dy, create_graph=True)
        results.append((y, dx, db, *torch.autograd.grad(dx.square().sum() + db.pow(3).sum(), dy)))
    for what, expected, actual in zip(("y", "dx", "db", "d_dy"), *results):
        if what == "db":                # a sum that may cancel
            assert (actual - expected).abs().max() <= 2e-5 * results[0][1].abs().sum([0, 2, 3]).max()
        else:
            assert_close_rel(actual, expected, 2e-5, what)


@needs_cxx
@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_of_work_change_nothing(threads, monkeypatch):
    """Rows in one piece or several, with torch's threads or our own."""
    fu, fd, settings = arguments("clamped")
    x, b = image((1, 20, 150, 40), torch.float32, torch.channels_last), bias(20, torch.float32)
    monkeypatch.setattr(cpu, "ITEMS_PER_THREAD", 0)
    whole = operator.filtered_lrelu(x, fu, fd, b, in_one(settings))
    monkeypatch.setattr(cpu, "ITEMS_PER_THREAD", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert cpu.chunks_of(2, 150) == 2 * threads
    assert torch.equal(operator.filtered_lrelu(x, fu, fd, b, in_one(settings)), whole)
    monkeypatch.setattr(backends, "_parallel_for", lambda: None)
    assert torch.equal(operator.filtered_lrelu(x, fu, fd, b, in_one(settings)), whole)


@needs_cxx
def test_what_is_not_finite_stays_so():
    fu, fd, settings = arguments("clamped")
    x = image((1, 3, 30, 30), torch.float32)
    x[0, 1, 15, 15] = float("nan")
    y = operator.filtered_lrelu(x, fu, fd, None, in_one(settings))
    rows, columns = y[0, 1].isnan().nonzero().T
    assert len(rows) > 0 and rows.min() <= 15 <= rows.max() and columns.min() <= 15 <= columns.max()
    assert not y[0, [0, 2]].isnan().any() and not y[0, 1, :2].isnan().any()


@pytest.mark.parametrize("rows, elements", [(5, 64), (16, 2 ** 14), (1000, 2 ** 30)])
@pytest.mark.parametrize("setting", ["same-rate", "up", "odd-factors", "beyond-the-image"])
def test_blocks_and_groups_change_nothing(monkeypatch, setting, rows, elements):
    """Band matrices in many blocks or one, columns in many groups or one."""
    monkeypatch.setattr(plain, "BAND_ROWS", rows)
    monkeypatch.setattr(plain, "GROUP_ELEMENTS", elements)
    fu, fd, settings = arguments(setting)
    x = image((2, 14, 21, 19)).requires_grad_()
    results = [fn(x, fu, fd, None, in_one(settings)) for fn in (reference.filtered_lrelu, operator.filtered_lrelu)]
    assert_close_rel(results[1], results[0], 1e-10, "y")
    gradients = [torch.autograd.grad(y.pow(2).sum(), x)[0] for y in results]
    assert_close_rel(gradients[1], gradients[0], 1e-10, "dx")


@pytest.mark.parametrize("setting", SEPARABLE)
def test_gradients_of_the_operators(setting):
    fu, fd, settings = arguments(setting)
    settings["padding"] = tuple(min(pad, 12) for pad in settings["padding"])
    x, b = image((1, 2, 14, 13)).requires_grad_(), bias(2).requires_grad_()
    fn = lambda x, b: operator.filtered_lrelu(x, fu, fd, b, in_one(settings))                # noqa: E731
    assert torch.autograd.gradcheck(fn, (x, b), eps=1e-8, atol=1e-5, rtol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(fn, (x, b), eps=1e-8, atol=1e-5, rtol=1e-5, fast_mode=True)


def test_third_derivative_and_zero_second_in_x():
    """The operator is piecewise linear: dx depends on dy, to any order, and on x not at all. A zero, not a missing gradient."""
    fu, fd, settings = arguments("clamped")
    x, b = image((1, 2, 12, 12)).requires_grad_(), bias(2).requires_grad_()
    y = filtered_lrelu.filtered_lrelu(x, fu, fd, b, **settings)
    dx, = torch.autograd.grad(y.pow(4).sum(), x, create_graph=True)
    ddx, = torch.autograd.grad(dx.square().sum(), x, create_graph=True)
    assert torch.autograd.grad(ddx.square().sum(), x)[0].abs().max() > 0

    linear, = torch.autograd.grad(filtered_lrelu.filtered_lrelu(x, fu, fd, b, **settings).sum(), x, create_graph=True)
    zero_x, zero_b = torch.autograd.grad(linear.square().sum(), (x, b))
    assert torch.equal(zero_x, torch.zeros_like(x)) and torch.equal(zero_b, torch.zeros_like(b))


@pytest.mark.parametrize("fn", [operator.filtered_lrelu, plain.filtered_lrelu], ids=["operator", "plain"])
@pytest.mark.parametrize("setting", ["same-rate", "up", "clamped"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision(dtype, setting, fn):
    """Not further from the double-precision result than the definition computed in that dtype, times two."""
    fu, fd, settings = arguments(setting)
    fu, fd = fu / fu.sum(), fd / fd.sum()
    x, b = image((2, 3, 20, 20), dtype), bias(3, dtype)
    exact = reference.filtered_lrelu(x.double(), fu, fd, b.double(), in_one(settings))
    allowed = (reference.filtered_lrelu(x, fu, fd, b, in_one(settings)).double() - exact).abs().max()
    y = fn(x, fu, fd, b, in_one(settings))
    assert y.dtype == dtype and allowed > 0
    assert (y.double() - exact).abs().max() <= 2 * allowed


def test_operator_opcheck():
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    fu, fd, _ = arguments("same-rate")
    for memory_format in FORMATS.values():
        x, b = image((2, 3, 9, 11), torch.float32, memory_format).requires_grad_(), bias(3, torch.float32).requires_grad_()
        settings = (fu, fd, b, 2, 2, [9, 8, 9, 8], 1.4, 0.2, 1.0, False)
        torch.library.opcheck(torch.ops.raycond.filtered_lrelu.default, (x, *settings), test_utils=checks)
        torch.library.opcheck(torch.ops.raycond.filtered_lrelu_derivative.default, (x, x, *settings, False), test_utils=checks)


def test_filters_are_read_at_each_call():
    """A buffer that load_state_dict overwrites in place must not leave matrices of its old values behind."""
    x, f = image((1, 1, 8, 8)), taps(6, 1)
    first = filtered_lrelu.filtered_lrelu(x, f, f, up=2, down=2, padding=5)
    f.mul_(2)
    second = filtered_lrelu.filtered_lrelu(x, f, f, up=2, down=2, padding=5)
    assert_close_rel(second, 16 * first, 1e-12, "y")


@pytest.mark.parametrize("setting", SETTINGS)
def test_shape_on_meta_and_fake_cuda(monkeypatch, setting):
    fu, fd, settings = arguments(setting)
    expected = filtered_lrelu.filtered_lrelu(image((2, 3, 40, 36), torch.float32), fu, fd, **settings).shape
    monkeypatch.setattr(custom_ops, "path", lambda op, device_type: "native" if device_type == "cuda" else "plain")
    shape_of = [None if f is None else list(f.shape) for f in (fu, fd)]

    def run(device):
        filters = [None if shape is None else torch.empty(shape, device=device) for shape in shape_of]
        return filtered_lrelu.filtered_lrelu(torch.empty(2, 3, 40, 36, device=device), *filters, **settings)

    y = run("meta")
    assert y.device.type == "meta" and y.shape == expected
    with FakeTensorMode():
        y = run("cuda")
        assert y.device.type == "cuda" and y.shape == expected


def test_no_graph_break():
    fu, fd, settings = arguments("same-rate")
    fn = lambda x, b: filtered_lrelu.filtered_lrelu(x, fu, fd, b, **settings)          # noqa: E731
    torch._dynamo.reset()
    x, b = image((1, 2, 8, 8)).requires_grad_(), bias(2).requires_grad_()
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")(x, b)
    torch.testing.assert_close(compiled, fn(x, b))
    for actual, expected in zip(torch.autograd.grad(compiled.sum(), (x, b)), torch.autograd.grad(fn(x, b).sum(), (x, b))):
        torch.testing.assert_close(actual, expected)
    torch._dynamo.reset()


def test_odd_inputs():
    """Nothing in the batch, no channels, a few pixels, views with gaps, and no filter at all."""
    fu, fd, settings = arguments("same-rate")
    base = image((2, 8, 20, 20))
    for x in (base[:0], base[:, :0], base[:, :, :3, :5], base[:, ::2, ::3, 1::2], base[:1, :1].expand(3, 2, 20, 20), base.transpose(2, 3)):
        y = filtered_lrelu.filtered_lrelu(x, fu, fd, **settings)
        if x.numel():
            assert_close_rel(y, filtered_lrelu.filtered_lrelu(x.contiguous(), fu, fd, **settings, impl="ref"), 1e-10, f"{list(x.shape)} {x.stride()}")
        else:
            assert y.numel() == 0 and y.shape[:2] == x.shape[:2]
    x = torch.tensor([2.0, -2.0]).view(1, 1, 1, 2)
    assert filtered_lrelu.filtered_lrelu(x, gain=3, slope=0.5).flatten().tolist() == [6, -3]
    assert filtered_lrelu.filtered_lrelu(x).flatten()[0].item() == pytest.approx(2 * 2 ** 0.5)
    assert not torch.equal(x, filtered_lrelu.filtered_lrelu(x, gain=1)) and x.flatten().tolist() == [2, -2]
    same = filtered_lrelu.filtered_lrelu(x, gain=1, slope=1)
    assert torch.equal(same, x) and same.data_ptr() != x.data_ptr()


def test_padding_may_be_short():
    x, f = image((1, 1, 9, 9)), upfirdn2d.setup_filter([1, 3, 3, 1], separable=True)
    run = lambda padding: filtered_lrelu.filtered_lrelu(x, f, f, up=2, down=2, padding=padding)        # noqa: E731
    assert torch.equal(run(3), run([3, 3, 3, 3])) and torch.equal(run([4, 2]), run((4, 4, 2, 2)))


def test_reference_is_taken_on_request(monkeypatch):
    monkeypatch.setattr(reference, "filtered_lrelu", lambda *args: "the definition")
    x = torch.zeros(1, 1, 4, 4)
    assert filtered_lrelu.filtered_lrelu(x, impl="ref") == "the definition" != filtered_lrelu.filtered_lrelu(x)
    monkeypatch.setenv("RAYCOND_OPS", "reference")
    assert filtered_lrelu.filtered_lrelu(x) == "the definition"


@pytest.mark.parametrize("change, message", [
    (dict(x=torch.zeros(3, 4, 4)), r"\[3, 4, 4\]"),
    (dict(b=torch.zeros(4)), r"b has shape \[4\], expected \[3\]"),
    (dict(b=torch.zeros(3).double()), "b is torch.float64"),
    (dict(fu=torch.zeros(4).double()), "fu of torch.float64"),
    (dict(fd=torch.zeros(2, 2, 2)), r"filter of shape \[2, 2, 2\]"),
    (dict(up=0), "up 0"),
    (dict(down=1.5), "down 1.5"),
    (dict(padding=[1, 2, 3]), r"padding \[1, 2, 3\]"),
    (dict(clamp=-1), "clamp -1"),
    (dict(impl="cpu"), "impl 'cpu'"),
    (dict(fd=torch.zeros(9)), "smaller than the filters"),
    (dict(fu=torch.zeros(6), padding=-1), "smaller than the filters"),
])
def test_errors_name_the_value(change, message):
    with pytest.raises(AssertionError, match=message):
        filtered_lrelu.filtered_lrelu(**{"x": torch.zeros(2, 3, 4, 4), **change})
