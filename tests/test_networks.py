"""Networks against the reference numbers, forward, first and second gradients."""

import inspect

import pytest
import torch
from helpers import assert_close_rel, load_golden

from torch_utils import misc
from training import networks_raycond2, networks_raycond3, networks_stylegan2, networks_stylegan3
from training.networks import discriminator
from training.networks.ray_conditioning import NoConditioning, RayConditioning

GENERATORS = {
    "net_raycond2.npz":         networks_raycond2.Generator,
    "net_stylegan2.npz":        networks_stylegan2.Generator,
    "net_stylegan2_cond.npz":   networks_stylegan2.Generator,
    "net_stylegan3t.npz":       networks_stylegan3.Generator,
    "net_stylegan3r_cond.npz":  networks_stylegan3.Generator,
    "net_raycond3t.npz":        networks_raycond3.Generator,
    "net_raycond3r.npz":        networks_raycond3.Generator,
}

# A gradient jumps where an activation changes sides, and rounding decides about one that is within 1e-7 of 0. Weights changed by a relative 1e-7, in five
# draws each, change single gradients of these networks by up to 1e-3 of the largest, and an AMD changed them by 5e-3; the others stay within 1e-5.
GRADIENTS = {name: 1e-2 for name in ("net_stylegan3t.npz", "net_raycond3t.npz", "disc_uncond_skip.npz")}


def load_state(module, golden, prefix="state/"):
    """All stored tensors into the module; names must agree exactly."""
    stored = {name[len(prefix):]: torch.as_tensor(value) for name, value in golden.items() if name.startswith(prefix)}
    have = dict(misc.named_params_and_buffers(module))
    assert set(stored) == set(have)
    with torch.no_grad():
        for name, value in stored.items():
            have[name].copy_(value)


def make_generator(file):
    golden = load_golden(file)
    G = GENERATORS[file](**golden["init_kwargs"]).eval()
    load_state(G, golden)
    return G, {name: torch.as_tensor(value) for name, value in golden.items() if name != "init_kwargs"}


@pytest.mark.parametrize("file", GENERATORS)
def test_generator_images(file):
    G, golden = make_generator(file)
    z, c = golden["z"], golden.get("c")
    with torch.no_grad():
        ws = G.mapping(z, c)
        assert_close_rel(ws, golden["ws"], 2e-4, "ws")
        assert_close_rel(G.mapping(z, c, truncation_psi=0.7), golden["ws_psi0.7"], 2e-4, "ws at psi 0.7")
        assert_close_rel(G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=2), golden["ws_psi0.5_cutoff2"], 2e-4, "ws at psi 0.5, cutoff 2")
        assert_close_rel(G.synthesis(ws, c, noise_mode="const"), golden["img_const"], 2e-4, "const")
        assert_close_rel(G(z, c, truncation_psi=0.7, noise_mode="const"), golden["img_psi0.7"], 2e-4, "psi 0.7")
        if "img_none" in golden:                                # StyleGAN3 has no noise
            assert_close_rel(G.synthesis(ws, c, noise_mode="none"), golden["img_none"], 2e-4, "none")


@pytest.mark.parametrize("training", [False, True])             # kernels scaled per sample, or features
@pytest.mark.parametrize("file", GENERATORS)
def test_generator_gradients(file, training):
    G, golden = make_generator(file)
    G.train(training)
    ws = golden["ws"].clone().requires_grad_()
    img = G.synthesis(ws, golden.get("c"), noise_mode="const")
    img.backward(golden["dimg"])
    allowed = GRADIENTS.get(file, 1e-3)
    assert_close_rel(ws.grad, golden["dws"], 1e-3, "dws")
    grads = {name[len("grad/"):]: value for name, value in golden.items() if name.startswith("grad/")}
    params = dict(G.named_parameters())
    assert grads
    for name, value in grads.items():
        assert_close_rel(params[name].grad, value, allowed, name)


@pytest.mark.parametrize("file", GENERATORS)
def test_one_sample_equals_the_batch(file):
    """A single sample takes another path through the modulated convolution."""
    G, golden = make_generator(file)
    with torch.no_grad():
        for i in range(len(golden["z"])):
            c = golden["c"][i : i + 1] if "c" in golden else None
            assert_close_rel(G(golden["z"][i : i + 1], c, noise_mode="const"), golden["img_const"][i : i + 1], 4e-4, f"sample {i}")


@pytest.mark.parametrize("file", ["disc_camera.npz", "disc_uncond_skip.npz"])
def test_discriminator(file):
    golden = load_golden(file)
    D = discriminator.Discriminator(**golden["init_kwargs"])
    load_state(D, golden)
    img = torch.as_tensor(golden["img"]).requires_grad_()
    logits = D(img, torch.as_tensor(golden["c"]))
    assert_close_rel(logits, golden["logits"], 2e-4, "logits")
    slope, = torch.autograd.grad(logits.sum(), img, create_graph=True)
    assert_close_rel(slope, golden["d_img"], 1e-3, "d_img")
    penalty = slope.square().sum([1, 2, 3])
    assert_close_rel(penalty, golden["r1_penalty"], 1e-3, "R1")
    penalty.sum().backward()
    params = dict(D.named_parameters())
    for name, value in golden.items():
        if name.startswith("r1_grad/"):
            grad = params[name[len("r1_grad/"):]].grad
            assert_close_rel(torch.zeros_like(torch.as_tensor(value)) if grad is None else grad, value, GRADIENTS.get(file, 1e-3), name)


@pytest.mark.parametrize("convention", ["pinhole", "published"])
def test_conditioning_sees_every_camera_once_per_size(convention):
    golden = load_golden("net_raycond2.npz")
    c = torch.as_tensor(golden["c"])
    bound = RayConditioning(convention).bind(c)
    x = torch.zeros(3, 5, 8, 8)
    assert bound.append_to(x).shape == (3, 11, 8, 8)
    assert bound.map(8, 8) is bound.map(8, 8)
    assert NoConditioning().bind(None).append_to(x) is x
    with pytest.raises(ValueError, match="25"):
        RayConditioning(convention).bind(None)
    with pytest.raises(ValueError, match="3 cameras for 2 latents"):
        RayConditioning(convention).bind(c, batch_size=2)


@pytest.mark.parametrize("convention", ["pinhole", "published"])
def test_identity_ignores_the_camera_and_the_image_does_not(convention):
    golden = load_golden("net_raycond2.npz")
    G = networks_raycond2.Generator(**dict(golden["init_kwargs"], rays=convention)).eval()
    z, c = torch.as_tensor(golden["z"]), torch.as_tensor(golden["c"])
    assert torch.equal(G.mapping(z, c), G.mapping(z, c.flip(0)))
    ws = G.mapping(z, c).detach()
    camera = c.clone().requires_grad_()
    img = G.synthesis(ws, camera, noise_mode="const")
    assert (img - G.synthesis(ws, c.flip(0), noise_mode="const")).abs().max() > 1e-3
    img.square().sum().backward()                               # a pose can be optimised
    assert camera.grad.abs().max() > 0 and camera.grad.isfinite().all()


def test_default_convention_is_the_published_one():
    assert inspect.signature(networks_raycond2.Generator.__init__).parameters["rays"].default == "published"
    assert inspect.signature(discriminator.Discriminator.__init__).parameters["rays"].default == "published"


@pytest.mark.parametrize("dcond, projects, channels", [("pose", True, 3), ("rays", False, 9), ("both", True, 9)])
def test_dcond(dcond, projects, channels):
    D = discriminator.Discriminator(c_dim=25, img_resolution=16, img_channels=3, channel_base=128, channel_max=16, num_fp16_res=0, dcond=dcond, rays="pinhole")
    assert hasattr(D, "mapping") == projects
    assert D.b16.fromrgb.weight.shape[1] == channels
    golden = load_golden("disc_camera.npz")
    img, c = torch.as_tensor(golden["img"]), torch.as_tensor(golden["c"])
    assert (D(img, c) - D(img, c.flip(0))).abs().max() > 0      # it sees the camera


@pytest.mark.parametrize("half_dtype", ["fp16", "bf16"])
def test_half_precision_is_for_gpus_only(half_dtype):
    kwargs = dict(z_dim=8, c_dim=0, w_dim=8, img_resolution=16, img_channels=3, channel_base=128, channel_max=8)
    torch.manual_seed(0)
    full = networks_stylegan2.Generator(**kwargs, num_fp16_res=0).eval()
    half = networks_stylegan2.Generator(**kwargs, num_fp16_res=4, half_dtype=half_dtype).eval()
    misc.copy_params_and_buffers(full, half, require_all=True)
    z = torch.randn(2, 8)
    assert half.synthesis.b16.use_fp16 and not full.synthesis.b16.use_fp16
    assert torch.equal(full(z, None, noise_mode="const"), half(z, None, noise_mode="const"))


def test_freezed_layers_are_buffers():
    D = discriminator.Discriminator(c_dim=0, img_resolution=16, img_channels=3, channel_base=128, channel_max=8, block_kwargs=dict(freeze_layers=2))
    frozen = {name for name, _ in D.named_buffers()}
    assert {"b16.fromrgb.weight", "b16.conv0.weight"} <= frozen and "b16.conv1.weight" not in frozen


def test_full_size_networks_on_meta():
    """Parameter counts of the published 512 px configurations, at no cost."""
    with torch.device("meta"):
        base = dict(z_dim=512, w_dim=512, img_resolution=512, img_channels=3)
        plain = networks_stylegan2.Generator(c_dim=0, **base)
        rays = networks_raycond2.Generator(c_dim=25, **base)
    count = [sum(p.numel() for p in G.parameters()) for G in (plain, rays)]
    layers = [m for m in plain.synthesis.modules() if isinstance(m, networks_stylegan2.SynthesisLayer)]
    assert count[1] - count[0] == sum(6 * (m.out_channels * 9 + m.w_dim + 1) for m in layers)
    assert len(layers) == 15 and plain.num_ws == 16
    assert plain.synthesis.block_resolutions == [4, 8, 16, 32, 64, 128, 256, 512]
    assert [getattr(plain.synthesis, f"b{r}").conv1.out_channels for r in plain.synthesis.block_resolutions] == [512, 512, 512, 512, 512, 256, 128, 64]
