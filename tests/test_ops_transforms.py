"""What PyTorch's transforms make of the ops: right, or refused by name; never a silent zero.

| | ops (torch_utils.ops) | registered operators (torch.ops.raycond) |
| --- | --- | --- |
| autograd of any order, is_grads_batched | the operator's own derivatives | the same |
| torch.compile, make_fx, fake tensors, tensor subclasses | one node per operator | the same |
| forward mode: torch.func.jvp, jacfwd, forward_ad | right, by PyTorch's own operations | RuntimeError "has no forward-mode derivative" |
| torch.func: grad, vjp, vmap, jacrev, hessian, functional_call | right, by PyTorch's own operations | vmap: a loop; grad: PyTorch's RuntimeError |
| torch.jit.trace | right, by PyTorch's own operations | right, where there is no list of sizes |
"""

import shutil
import warnings

import pytest
import torch
from helpers import assert_close_rel
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from torch_utils import custom_ops
from torch_utils.ops import bias_act, conv2d_resample, filtered_lrelu, grid_sample_gradfix, modulate, upfirdn2d
from torch_utils.ops.bias_act import cpu as bias_act_cpu
from torch_utils.ops.conv2d_gradfix import operator as strided_conv
from torch_utils.ops.conv2d_resample import cpu as up_conv
from torch_utils.ops.modulate import cpu as modulate_cpu
from torch_utils.ops.upfirdn2d import cpu as upfirdn2d_cpu
from training import networks_raycond2, networks_raycond3
from training.networks.discriminator import Discriminator

needs_cxx = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler: there are no native paths")


@pytest.fixture(autouse=True)
def take_small_ones_too(monkeypatch):
    for module in (bias_act_cpu, modulate_cpu, upfirdn2d_cpu, up_conv):
        monkeypatch.setattr(module, "LEAST_ELEMENTS", 0)
    monkeypatch.setattr(strided_conv, "LEAST_CHANNELS", 1)


def draw(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


X = draw(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
V = draw(2, 16, 8, 8, seed=1)
B, STYLES, W, RAYS = draw(16, seed=2), draw(2, 18, seed=3), draw(16, 16, 3, 3, seed=4, scale=0.2), draw(2, 2, 8, 8, seed=5)
GRID = draw(2, 5, 5, 2, seed=6, scale=0.5)
F4, F12 = upfirdn2d.setup_filter([1, 3, 3, 1]), upfirdn2d.setup_filter(draw(12, seed=7).exp())
LOW = dict(up=2, down=2, padding=[11, 10, 11, 10])

# name -> (the op on its fastest path, what it is by definition)
OPS = {
    "bias_act": (lambda x: bias_act.bias_act(x, B, act="lrelu", clamp=1.0), lambda x: bias_act.bias_act(x, B, act="lrelu", clamp=1.0, impl="ref")),
    "bias_act, scaled": (lambda x: bias_act.scaled_bias_act(x, B, act="lrelu", scale=STYLES[:, :16], noise=RAYS[:, :1]),
                         lambda x: bias_act.bias_act(x * STYLES[:, :16, None, None] + RAYS[:, :1], B, act="lrelu", impl="ref")),
    "upfirdn2d": (lambda x: upfirdn2d.upsample2d(x, F4), lambda x: upfirdn2d.upsample2d(x, F4, impl="ref")),
    "filtered_lrelu": (lambda x: filtered_lrelu.filtered_lrelu(x, F12, F12, B, **LOW),
                       lambda x: filtered_lrelu.filtered_lrelu(x, F12, F12, B, **LOW, impl="ref")),
    "modulate": (lambda x: modulate.modulate(x, STYLES, RAYS), lambda x: torch.cat([x, RAYS], dim=1) * STYLES[:, :, None, None]),
    "demodulation": (lambda x: modulate.demodulation(W, x.mean([2, 3])),
                     lambda x: ((W * x.mean([2, 3])[:, None, :, None, None]).square().sum([2, 3, 4]) + 1e-8).rsqrt()),
    "up_conv": (lambda x: conv2d_resample.conv2d_resample(x, W, F4, up=2, padding=1),
                lambda x: upfirdn2d.upfirdn2d(functional.conv_transpose2d(x, W.flip([2, 3]).transpose(0, 1), stride=2), F4, padding=1, gain=4, impl="ref")),
    "strided_conv": (lambda x: conv2d_resample.conv2d_resample(x, W, F4, down=2, padding=1),
                     lambda x: functional.conv2d(upfirdn2d.upfirdn2d(x, F4, padding=2, impl="ref"), W, stride=2)),
    "grid_sample": (lambda x: grid_sample_gradfix.grid_sample(x, GRID),
                    lambda x: grid_sample_gradfix._by_gathering(x, GRID)),                      # held to PyTorch's below
}


def energy(op):
    return lambda x: op(x).square().sum()


def with_forward_ad(op):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(op(forward_ad.make_dual(X, V))).tangent


def with_batched_gradients(op):
    x = X.clone().requires_grad_()
    y = op(x)
    return torch.autograd.grad(y, x, torch.stack([torch.ones_like(y), y.detach()]), is_grads_batched=True)[0]


def compiled(backend):
    def gradient(op):
        torch._dynamo.reset()
        x = X.clone().requires_grad_()
        return torch.autograd.grad(torch.compile(op, backend=backend, fullgraph=True)(x).square().sum(), x)[0]
    return gradient


def compiled_jvp(op):
    torch._dynamo.reset()
    return torch.compile(lambda x: torch.func.jvp(op, (x,), (V,))[1], backend="eager")(X)


def traced(op):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(op, X)(V)


class Subclass(torch.Tensor):
    pass


TRANSFORMS = {
    "jvp": lambda op: torch.func.jvp(op, (X,), (V,))[1],
    "forward_ad": with_forward_ad,
    "jvp of grad": lambda op: torch.func.jvp(torch.func.grad(energy(op)), (X,), (V,))[1],
    "grad": lambda op: torch.func.grad(energy(op))(X),
    "grad of grad": lambda op: torch.func.grad(energy(torch.func.grad(energy(op))))(X),
    "vmap": lambda op: torch.func.vmap(op)(torch.stack([X, V])),
    "vmap of grad": lambda op: torch.func.vmap(torch.func.grad(energy(op)))(torch.stack([X, V])),
    "jacfwd": lambda op: torch.func.jacfwd(lambda s: op(X + s * V))(torch.tensor(0.1)),
    "hessian": lambda op: torch.func.hessian(lambda s: energy(op)(X + s * V))(torch.tensor(0.1)),
    "batched gradients": with_batched_gradients,
    "make_fx": lambda op: make_fx(torch.func.grad(energy(op)))(X)(V),
    "subclass": lambda op: op(X.as_subclass(Subclass)).as_subclass(torch.Tensor),
    "jit.trace": traced,
    "compile, eager": compiled("eager"),
    "compile, aot_eager": compiled("aot_eager"),
    "compile of jvp": compiled_jvp,
}


@needs_cxx
@pytest.mark.filterwarnings("ignore::UserWarning")                                               # vmap loops over what it has no rule for
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", OPS)
def test_transforms_are_right(name, transform):
    fast, definition = OPS[name]
    expected = TRANSFORMS[transform](definition)
    assert expected.abs().max() > 0
    assert_close_rel(TRANSFORMS[transform](fast), expected, 1e-4)


@needs_cxx
@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
def test_inductor_is_right(name):
    fast, definition = OPS[name]
    assert_close_rel(compiled("inductor")(fast), torch.func.grad(energy(definition))(X), 1e-4)
    torch._dynamo.reset()


def test_gathering_is_grid_sample():
    """Values, first gradients in both, and a second gradient in the grid, which PyTorch's own lacks, against differences."""
    x, grid = X.double().requires_grad_(), GRID.double().requires_grad_()
    expected = functional.grid_sample(x, grid, align_corners=False)
    y = grid_sample_gradfix._by_gathering(x, grid)
    assert_close_rel(y, expected, 1e-12)
    for actual, wanted in zip(torch.autograd.grad(energy(lambda x: x)(y), (x, grid)), torch.autograd.grad(energy(lambda x: x)(expected), (x, grid))):
        assert_close_rel(actual, wanted, 1e-12)
    assert torch.autograd.gradgradcheck(lambda grid: grid_sample_gradfix._by_gathering(X[:, :2].double(), grid), GRID[:, :2, :2].double().requires_grad_())


# ---------------------------------------------------------------------------------------------------------------------
# The operators themselves.

def calls():
    """name -> (a call of the registered operator, its argument)."""
    ops = torch.ops.raycond
    return {
        "bias_act": (lambda x: ops.bias_act(x, B, 1, "lrelu", 0.2, 1.0, -1.0), X),
        "bias_act_cpu": (lambda x: ops.bias_act_cpu(x, B, None, None, 0.2, 1.0, -1.0), X),
        "upfirdn2d": (lambda x: ops.upfirdn2d(x, F4, [2, 2], [1, 1], [2, 1, 2, 1], False, 4.0), X),
        "filtered_lrelu": (lambda x: ops.filtered_lrelu(x, F12, F12, B, 2, 2, [11, 10, 11, 10], 1.4, 0.2, -1.0, False), X),
        "modulate_cpu": (lambda x: ops.modulate_cpu(x, STYLES, RAYS), X),
        "strided_conv_down": (lambda x: ops.strided_conv_down(x, W, 2), X),
        "grid_sample": (lambda x: ops.grid_sample(x, GRID), X),
    }


@needs_cxx
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("name", calls())
def test_operators_refuse_tangents(name, with_gradient):
    """What reaches an operator directly: where a tangent comes in, an error names it; without one, the level changes nothing."""
    call, x = calls()[name]
    x = x.clone().requires_grad_(with_gradient)
    expected = call(x)
    with pytest.raises(RuntimeError, match=f"raycond::{name} has no forward-mode derivative"):
        torch.func.jvp(call, (x,), (V,))
    with forward_ad.dual_level():
        assert torch.equal(call(x), expected)
        with pytest.raises(RuntimeError, match=f"raycond::{name} has no forward-mode derivative"):
            call(forward_ad.make_dual(x, V))


@needs_cxx
def test_a_tangent_that_comes_in_with_the_gradient_is_refused():
    x = X.clone().requires_grad_()
    y = upfirdn2d.upsample2d(x, F4)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))


# ---------------------------------------------------------------------------------------------------------------------
# Whole networks.

def make_networks(family):
    torch.manual_seed(0)
    sizes = dict(c_dim=25, img_resolution=16, img_channels=3, channel_base=256, channel_max=16)
    layers = dict(num_layers=4) if family is networks_raycond3 else {}
    G = family.Generator(z_dim=16, w_dim=16, rays="pinhole", **sizes, **layers).eval()
    return G, Discriminator(**sizes, dcond="both")


def camera_label(yaw):
    from camera_utils import Camera
    return Camera.look_at(yaw, 0.1, 2.7, focal=4.2647).to_label()


@pytest.mark.parametrize("family", [networks_raycond2, networks_raycond3])
def test_forward_mode_through_networks(family):
    """How the image changes with latent and camera, and D with the image: against differences in double precision."""
    G, D = (network.double() for network in make_networks(family))
    z, dz = draw(2, 16, seed=1).double(), draw(2, 16, seed=2).double()

    def logits(step):
        image = G(z + step * dz, camera_label(0.3 + step.double().expand(2)), noise_mode="const")
        return D(image, camera_label(torch.tensor([0.3], dtype=torch.float64)))

    zero, step = torch.zeros([], dtype=torch.float64), 1e-5
    with torch.no_grad():
        expected = (logits(zero + step) - logits(zero - step)) / (2 * step)
    assert expected.abs().max() > 1e-4
    assert_close_rel(torch.func.jvp(logits, (zero,), (torch.ones_like(zero),))[1], expected, 1e-3)
    with forward_ad.dual_level():
        assert_close_rel(forward_ad.unpack_dual(logits(forward_ad.make_dual(zero, torch.ones_like(zero)))).tangent, expected, 1e-3)


@pytest.mark.parametrize("family", [networks_raycond2, networks_raycond3])
def test_functional_calls_of_networks(family):
    """functional_call, gradients of parameters by torch.func, vmap over samples."""
    G, D = make_networks(family)
    z, c = draw(3, 16, seed=1), camera_label(torch.linspace(-0.4, 0.4, 3))
    image = G(z, c, noise_mode="const")
    weights = dict(G.named_parameters())
    call = lambda weights, z, c: torch.func.functional_call(G, weights, (z, c), dict(noise_mode="const"))           # noqa: E731
    assert torch.equal(call(weights, z, c), image)
    gradients = torch.func.grad(lambda weights: call(weights, z, c).square().mean())(weights)
    image.square().mean().backward()
    for name, p in G.named_parameters():
        if p.grad is not None:
            assert_close_rel(gradients[name], p.grad, 1e-3, name)
    assert_close_rel(torch.func.vmap(lambda z, c: G(z[None], c[None], noise_mode="const")[0])(z, c), image, 1e-4)
    each = torch.cat([D(image[i:i + 1], c[i:i + 1]) for i in range(3)])
    assert_close_rel(torch.func.vmap(lambda image, c: D(image[None], c[None])[0])(image, c), each, 1e-4)


@pytest.mark.slow
def test_compiled_networks():
    """G without a graph break, and its gradient."""
    G, _ = make_networks(networks_raycond2)
    z, c = draw(2, 16, seed=1), camera_label(torch.linspace(-0.4, 0.4, 2))
    torch._dynamo.reset()
    compiled_G = torch.compile(lambda z, c: G(z, c, noise_mode="const"), backend="aot_eager", fullgraph=True)
    gradients = [torch.autograd.grad(call(z, c.requires_grad_()).square().mean(), c)[0] for call in (compiled_G, lambda z, c: G(z, c, noise_mode="const"))]
    assert_close_rel(*gradients, 1e-4)
    custom_ops._paths.clear()
    torch._dynamo.reset()
