"""The CUDA kernels' arithmetic without a GPU, and the registered operators as torch.compile and fake tensors see them.

Each kernel is a template of host and device; `host_twin.cpp` runs every thread of every block on the CPU with the same index
arithmetic, tiles and shared memory (filled with NaN beforehand). What this cannot show is races and speed.
"""

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_utils import custom_ops
from torch_utils.ops import backends, bias_act, filtered_lrelu, grid_sample_gradfix, upfirdn2d
from torch_utils.ops.bias_act import activation_funcs
from torch_utils.ops.bias_act import cuda as bias_act_cuda
from torch_utils.ops.bias_act import operator as bias_act_operator
from torch_utils.ops.filtered_lrelu import cuda as filtered_lrelu_cuda
from torch_utils.ops.filtered_lrelu import plain as filtered_lrelu_plain
from torch_utils.ops.filtered_lrelu import reference as filtered_lrelu_reference
from torch_utils.ops.upfirdn2d import cuda as upfirdn2d_cuda
from torch_utils.ops.upfirdn2d import operator as upfirdn2d_operator
from torch_utils.ops.upfirdn2d import reference as upfirdn2d_reference

CXX = shutil.which("g++") or shutil.which("clang++")
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.float32: 3e-6, torch.float64: 1e-12}     # of the largest value
TWINS = {"host compiler": (torch.float32, torch.float64), "nvcc": (torch.float16, torch.bfloat16)}
TILED = ((1, 1), (2, 1), (1, 2))        # factors that have variants of their own
FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(scope="module", params=["host compiler", pytest.param("nvcc", marks=pytest.mark.slow)])
def twin(request, tmp_path_factory):
    """(library of an op, dtypes it knows): half precision exists for nvcc alone."""
    compiler = [CXX] if request.param == "host compiler" else ([shutil.which("nvcc"), "-x", "cu"] if shutil.which("nvcc") else [None])
    if compiler[0] is None:
        pytest.skip(f"no {request.param}: kernel arithmetic is not checked in {TWINS[request.param]}")
    folder = tmp_path_factory.mktemp("twins")
    built = {}

    def library(op):
        if op not in built:
            source = Path(bias_act.__file__).parents[1] / op / "host_twin.cpp"
            flags = ["-Xcompiler", "-fPIC"] if "-x" in compiler else ["-fPIC"]
            target = folder / f"{op}.so"
            subprocess.run([*compiler, "-O1", "-std=c++17", "-shared", *flags, f"-I{backends.COMMON}", str(source), "-o", str(target)], check=True)
            built[op] = ctypes.CDLL(str(target))
        return built[op]
    return library, TWINS[request.param]


def randn(rng, shape, dtype, memory_format=torch.contiguous_format):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype).to(memory_format=memory_format)


def assert_near(actual, expected, dtype, what):
    assert actual.dtype == dtype and actual.shape == expected.shape, what
    if expected.numel():
        error = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        assert error <= TOLERANCE[dtype], f"{what}: off by {error:.3g} of the largest value"


@pytest.mark.parametrize("up, down", [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2)), ((2, 2), (2, 2)), ((3, 1), (1, 2)), ((4, 4), (2, 2))])
def test_upfirdn2d_kernels(twin, up, down):
    """Each variant (4x4 tiles, separable tiles, channels_last strips, any) over shapes, crops, phases, gains and both layouts."""
    library, dtypes = twin
    rng, pick = np.random.RandomState(0), random.Random(0)
    ran = 0
    for dtype in dtypes:
        for taps in ((4, 4), (12,), (24,), (9,), (5, 3)):
            f = torch.from_numpy(rng.uniform(-1, 1, taps).astype(np.float32))
            fh, fw = taps[0], taps[-1]
            for memory_format in FORMATS:
                for shape in ((2, 8, 9, 13), (1, 8, 33, 65), (1, 2, 70, 67), (1, 24, 17, 5))[:4 if (up[0], down[0]) in TILED else 1]:
                    padding = (pick.randint(-2, fw), pick.randint(0, fw), pick.randint(-2, fh), pick.randint(0, fh))
                    if any(shape[3 - i] * up[i] + sum(padding[2 * i:2 * i + 2]) < (fw, fh)[i] for i in range(2)):
                        continue
                    x = randn(rng, shape, dtype, memory_format)
                    settings = upfirdn2d_reference.Settings(up, down, padding, pick.random() < 0.5, pick.choice([1.0, -2.0, 0.5]))
                    expected = upfirdn2d_reference.upfirdn2d(x.double(), f, settings)
                    y = upfirdn2d_cuda.run(library("upfirdn2d"), x, f, settings)
                    assert_near(y, expected, dtype, f"{dtype} {taps} {shape} {memory_format} {settings}")
                    ran += 1
    assert ran > 15


def test_upfirdn2d_kernels_on_odd_inputs(twin):
    """Empty, sliced, expanded, single pixels: the strides that only the general variant accepts."""
    library, dtypes = twin
    rng = np.random.RandomState(0)
    f = torch.from_numpy(rng.uniform(-1, 1, (4, 4)).astype(np.float32))
    base = randn(rng, (2, 16, 20, 20), dtypes[0])
    for x in (base[:0], base[:, ::2, ::3, 1::2], base[:1, :1].expand(3, 16, 20, 20), base[:, :, :1, :1], base.to(memory_format=torch.channels_last)[:, 3:11]):
        settings = upfirdn2d_reference.Settings((1, 1), (1, 1), (2, 2, 2, 2), False, 1.0)
        y = upfirdn2d_cuda.run(library("upfirdn2d"), x, f, settings)
        assert_near(y, upfirdn2d_reference.upfirdn2d(x.double(), f, settings), dtypes[0], f"{list(x.shape)} {x.stride()}")


@pytest.mark.parametrize("clamp", [-1.0, 0.6])
@pytest.mark.parametrize("act", activation_funcs)
def test_bias_act_kernels(twin, act, clamp):
    """The three orders; shapes for each way of finding the bias (per vector, running, one by one), and remainders."""
    library, dtypes = twin
    rng = np.random.RandomState(0)
    settings = bias_act.Settings(1, act, 0.3, 1.7, clamp)
    shapes = [((2, 8, 4, 8), FORMATS[0]), ((2, 16, 5, 3), FORMATS[1]), ((2, 7, 5, 3), FORMATS[0]), ((3, 7, 5, 5), FORMATS[1]), ((0, 8, 4, 4), FORMATS[0])]
    if act == "lrelu":
        shapes.append(((40, 7, 32, 32), FORMATS[0]))
    for dtype in dtypes:
        for shape, memory_format in shapes:
            x, dy, ddx = (randn(rng, shape, dtype, memory_format) for _ in range(3))
            b = randn(rng, shape[1], dtype)
            what = f"{dtype} {shape} {memory_format}"
            y = bias_act_cuda.run(library("bias_act"), 0, x, None, None, b, settings)
            assert_near(y, bias_act_operator._cpu(x.double(), b.double(), *settings), dtype, what)
            assert y.stride() == x.stride()
            ref, bias = (x, b) if act == "swish" else (y, None)
            wide = (ref.double(), None if bias is None else bias.double())
            dx = bias_act_cuda.run(library("bias_act"), 1, dy.contiguous(), None, ref, bias, settings)
            assert_near(dx, bias_act_operator._cpu_grad(dy.double(), *wide, *settings), dtype, what + " gradient")
            d_ref = bias_act_cuda.run(library("bias_act"), 2, ddx, dy, ref, bias, settings)
            assert_near(d_ref, bias_act_operator._cpu_grad2(ddx.double(), dy.double(), *wide, *settings), dtype, what + " second")


def test_bias_act_kernels_on_odd_inputs(twin):
    """Unaligned, sliced and permuted tensors."""
    library, dtypes = twin
    rng = np.random.RandomState(0)
    base = randn(rng, (4, 8, 33), dtypes[0])
    for x in (base.flatten()[1:].view(-1)[:1024].view(4, 8, 32), base[:, :, ::2], base.transpose(0, 2), base.permute(2, 1, 0)[5:]):
        b = randn(rng, x.shape[1], dtypes[0])
        settings = bias_act.Settings(1, "lrelu", 0.2, 1.4, -1.0)
        y = bias_act_cuda.run(library("bias_act"), 0, x, None, None, b, settings)
        assert_near(y, bias_act_operator._cpu(x.double(), b.double(), *settings), dtypes[0], f"{list(x.shape)} {x.stride()}")


@pytest.mark.parametrize("taps, up, down", [((12, 12), 2, 2), ((24, 12), 4, 2), ((5, 32), 1, 4), ((None, 6), 3, 1), ((32, None), 4, 4)])
def test_filtered_lrelu_kernel(twin, taps, up, down):
    """The function, its derivative and the adjoint: one tile and several, crops, biases, signs of the gain, both orders of the taps."""
    library, dtypes = twin
    rng, pick = np.random.RandomState(0), random.Random(0)
    fu, fd = (None if n is None else torch.from_numpy(rng.uniform(-0.5, 1, n).astype(np.float32)) for n in taps)
    for dtype in set(dtypes) - {torch.float64}:
        for shape in ((2, 2, 9, 13), (1, 2, 45, 70), (0, 3, 16, 16)):
            for clamp in (-1.0, 1.5):
                x, b = randn(rng, shape, dtype), randn(rng, shape[1], dtype) if pick.random() < 0.7 else None
                reach = (fu is not None and len(fu)) + (fd is not None and len(fd))
                padding = [reach // 2 + pick.randint(-3, 3) for _ in range(4)]
                settings = filtered_lrelu_reference.Settings(up, down, padding, pick.choice([1.4, -0.7]), pick.choice([0.2, 0.0]), clamp,
                                                            pick.random() < 0.5)
                sizes = filtered_lrelu_reference.sizes(x, fu, fd, settings)
                what = f"{dtype} {shape} {settings}"
                run = lambda v, transposed: filtered_lrelu_cuda.run(                                            # noqa: E731
                    library("filtered_lrelu"), x, v, fu, fd, b, settings, transposed)                           # noqa: B023
                wide = (fu, fd, None if b is None else b.double(), settings)
                assert_near(run(None, False), filtered_lrelu_plain.function(x.double(), *wide), dtype, what)
                v, dy = randn(rng, shape, dtype), randn(rng, (*shape[:2], *sizes.result), dtype)
                for direction, transposed in ((v, False), (dy, True)):
                    expected = filtered_lrelu_plain.derivative(x.double(), direction.double(), *wide, transposed)
                    assert_near(run(direction, transposed), expected, dtype, f"{what} transposed {transposed}")


# ---------------------------------------------------------------------------------------------------------------------
# The operators under fake tensors and torch.compile.

@pytest.mark.parametrize("memory_format, dtype", [(torch.contiguous_format, torch.float32), (torch.channels_last, torch.float16)])
def test_fake_cuda_tensors_take_the_native_operators(monkeypatch, memory_format, dtype):
    monkeypatch.setattr(custom_ops, "path", lambda op, device_type: "native" if device_type == "cuda" else "plain")
    with FakeTensorMode():
        x = torch.empty([2, 8, 16, 16], dtype=dtype, device="cuda").to(memory_format=memory_format)
        f = torch.empty([4, 4], device="cuda")
        b = torch.empty([8], dtype=dtype, device="cuda")
        y = bias_act.bias_act(upfirdn2d.upsample2d(x, f), b, act="lrelu", clamp=256)
        assert y.shape == (2, 8, 32, 32) and y.dtype == dtype and y.device.type == "cuda"
        assert y.is_contiguous(memory_format=memory_format)
        assert grid_sample_gradfix.grid_sample(x, torch.empty([2, 5, 6, 2], device="cuda")).shape == (2, 8, 5, 6)


def test_no_graph_break():
    """fullgraph=True raises at a graph break. Nothing has been decided before tracing."""
    f = upfirdn2d.setup_filter([1, 3, 3, 1])

    def plain(x, b):
        return bias_act.bias_act(upfirdn2d.downsample2d(upfirdn2d.upsample2d(x, f), f), b, act="lrelu", clamp=1.0)

    def native(x, b):
        y = upfirdn2d_operator.upfirdn2d(x, f, upfirdn2d.Settings((2, 2), (1, 1), (2, 1, 2, 1), False, 4.0))
        return bias_act_operator.bias_act(y, b, bias_act.Settings(1, "swish", 0.0, 1.0, 1.0))

    for fn in (plain, native):
        custom_ops._paths.clear()
        torch._dynamo.reset()
        x, b = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(3, requires_grad=True)
        compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")(x, b)
        torch.testing.assert_close(compiled, fn(x, b))
        for actual, expected in zip(torch.autograd.grad(compiled.sum(), (x, b)), torch.autograd.grad(fn(x, b).sum(), (x, b))):
            torch.testing.assert_close(actual, expected)
    torch._dynamo.reset()


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU, where there is one.

@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: native kernels are compiled and emulated, but not run")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_native_on_gpu(monkeypatch, memory_format, dtype):
    monkeypatch.setenv("RAYCOND_OPS", "native")
    rng = np.random.RandomState(0)
    x = randn(rng, (2, 16, 65, 67), dtype, memory_format).cuda().requires_grad_()
    b = randn(rng, 16, dtype).cuda().requires_grad_()
    for f in (torch.rand(4, 4), torch.rand(12), torch.rand(24), torch.rand(5, 3)):
        for up, down in ((1, 1), (2, 1), (1, 2), (2, 2)):
            for act in activation_funcs:
                run = lambda x, b, impl, clamp, f=f, up=up, down=down, act=act: bias_act.bias_act(         # noqa: E731
                    upfirdn2d.upfirdn2d(x, f.cuda() / f.numel(), up=up, down=down, padding=(12, 11), impl=impl), b, act=act, clamp=clamp, impl=impl)
                assert_near(run(x, b, "cuda", 2.0), run(x.double(), b.double(), "ref", 2.0), dtype, f"{dtype} {act} {f.shape} {up} {down}")
                if act == "linear":         # without the clamp, to which half precision rounds values that are still free in double precision
                    dx, expected = (torch.autograd.grad(run(*xb, None).sum(), x)[0] for xb in ((x, b, "cuda"), (x.double(), b.double(), "ref")))
                    assert_near(dx, expected.double(), dtype, "dx")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: native kernels are compiled and emulated, but not run")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_filtered_lrelu_on_gpu(monkeypatch, memory_format, dtype):
    """Values, first gradients and the gradient of a gradient."""
    monkeypatch.setenv("RAYCOND_OPS", "native")
    rng = np.random.RandomState(0)
    for taps_up, up, down, padding in ((12, 2, 2, [9, 8, 9, 8]), (24, 4, 2, [-6, -9, -6, -9]), (12, 2, 4, [3, 20, 7, 1])):
        fu, fd = (torch.from_numpy(rng.uniform(-0.5, 1, n).astype(np.float32) / n).cuda() for n in (taps_up, 12))
        x, b = randn(rng, (2, 16, 65, 67), dtype, memory_format).cuda(), randn(rng, 16, dtype).cuda()
        results, dy = [], None
        for impl, kind in (("ref", torch.float64), ("cuda", dtype)):
            leaf, bias = x.to(kind).requires_grad_(), b.to(kind).requires_grad_()
            y = filtered_lrelu.filtered_lrelu(leaf, fu, fd, bias, up, down, padding, clamp=1.0, impl=impl)
            dy = torch.randn_like(y).to(dtype) if dy is None else dy
            upstream = dy.to(kind).requires_grad_()
            dx, = torch.autograd.grad(y, leaf, upstream, create_graph=True)
            results.append((y, dx, torch.autograd.grad(dx, upstream, x.to(kind))[0]))
        for what, expected, actual in zip(("y", "dx", "d_dy"), *results):
            assert_near(actual, expected, dtype, f"{what} {dtype} up {up} down {down}")
