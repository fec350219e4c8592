"""Numbers stay what they are under other default dtypes, autocast, G.half() and the like; labels of integers; one latent for many cameras."""

import ast
import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_close_rel

import camera_utils
import legacy
from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_resample, filtered_lrelu, modulate, upfirdn2d
from training import networks_raycond2, networks_raycond3, networks_stylegan2, networks_stylegan3, plucker
from training.augment import AugmentPipe
from training.loss import StyleGAN2Loss
from training.networks.discriminator import Discriminator

ROOT = Path(misc.__file__).parents[1]
SIZES = dict(c_dim=25, img_resolution=16, img_channels=3, channel_base=128, channel_max=16)
FAMILIES = {"stylegan2": networks_stylegan2, "raycond2": networks_raycond2, "stylegan3": networks_stylegan3, "raycond3": networks_raycond3}
HALVES = (torch.float16, torch.bfloat16)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: autocast is tested on the CPU")))


def make_generator(family):
    torch.manual_seed(0)
    rays = dict(rays="pinhole") if family.startswith("raycond") else {}
    layers = dict(num_layers=4) if family.endswith("3") else {}
    return FAMILIES[family].Generator(z_dim=16, w_dim=16, **SIZES, **rays, **layers).eval()


def inputs(count=3):
    z = torch.randn([count, 16], generator=torch.Generator().manual_seed(1))
    yaw = torch.linspace(-0.5, 0.5, count)
    return z, camera_utils.camera_for("heads", yaw, 0.2 * yaw).to_label()


# ---------------------------------------------------------------------------------------------------------------------
# Another library has set torch's default dtype.

FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn", "scalar_tensor", "tensor", "zeros"}


def test_every_new_tensor_names_its_dtype():
    """Without one it would have the default dtype, which is anybody's to set."""
    nameless = []
    for folder in ("camera_utils", "dataset_preprocessing", "demo", "dnnlib", "metrics", "torch_utils", "training", "."):
        for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                made = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES
                if made and getattr(node.func.value, "id", "") == "torch":
                    if not any(keyword.arg in ("dtype", None) for keyword in node.keywords):       # None: **kwargs
                        nameless.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not nameless


@pytest.fixture(scope="module")
def under_default_dtype():
    """(name of a dtype) -> what default_dtype.py prints under it, each in a process of its own."""
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    running = {name: subprocess.Popen([sys.executable, str(Path(__file__).with_name("default_dtype.py")), name], cwd=ROOT, env=env,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for name in ("float32", "bfloat16", "float16", "float64")}

    def printed(name):
        out, err = running[name].communicate()
        assert running[name].returncode == 0, err
        return out
    expected = printed("float32")
    return lambda name: (printed(name), expected)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
def test_numbers_do_not_depend_on_the_default_dtype(under_default_dtype, name):
    """Every native path, networks and their gradients, augmentation, rays, a file: equal to the bit."""
    actual, expected = under_default_dtype(name)
    assert len(expected.splitlines()) > 15 and actual == expected


# ---------------------------------------------------------------------------------------------------------------------
# Autocast.

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_generators_under_autocast(family, dtype, device):
    """They choose their precision themselves, whatever comes in."""
    G, (z, c) = make_generator(family).to(device), (x.to(device) for x in inputs())
    expected_ws, expected = G.mapping(z, c), G(z, c, noise_mode="const")
    with torch.autocast(device, dtype):
        ws, image = G.mapping(z, c), G(z, c, noise_mode="const")
        rough = G.synthesis(ws.to(dtype), c, noise_mode="const")
        named = G.synthesis(ws=G.mapping(z=z, c=c), c=c, noise_mode="const")
    assert ws.dtype == image.dtype == rough.dtype == torch.float32
    assert torch.equal(ws, expected_ws) and torch.equal(image, expected) and torch.equal(named, expected)
    assert_close_rel(rough, expected, 0.05)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dcond", ["pose", "rays", "both"])
def test_discriminator_under_autocast(dcond, dtype):
    D, (_, c) = Discriminator(**SIZES, dcond=dcond), inputs()
    image = torch.randn([3, 3, 16, 16])
    expected = D(image, c)
    with torch.autocast("cpu", dtype):
        logits, named, rough = D(image, c), D(img=image, c=c), D(image.to(dtype), c)
    assert torch.equal(logits, expected) and torch.equal(named, expected) and rough.dtype == torch.float32
    assert_close_rel(rough, expected, 0.05)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", ["raycond2", "raycond3"])
def test_all_phases_under_autocast(family, dtype, device):
    """R1, path length and augmentation too: nothing changes."""
    transforms = "xflip scale rotate brightness hue imgfilter cutout".split()
    pipe, results = AugmentPipe(**dict.fromkeys(transforms, 1)).to(device), []
    for enabled in (False, True):
        G, D = make_generator(family).train().to(device), Discriminator(**SIZES, dcond="both").to(device)
        loss = StyleGAN2Loss(device, G, D, augment_pipe=pipe, r1_gamma=1, pl_weight=2, style_mixing_prob=0.9,
                             blur_init_sigma=1, blur_fade_kimg=1)
        (z, c), gradients = (x.to(device) for x in inputs(4)), []
        real = (torch.rand([4, 3, 16, 16], generator=torch.Generator().manual_seed(2)) * 2 - 1).to(device)
        torch.manual_seed(5)
        for phase, module in (("Gboth", G), ("Dboth", D)):
            G.requires_grad_(module is G)
            D.requires_grad_(module is D)
            with torch.autocast(device, dtype, enabled=enabled):
                loss.accumulate_gradients(phase, real, c, z, c, gain=1, cur_nimg=10)
            gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
        results.append(gradients)
    for expected, actual in zip(*results):
        assert expected.norm() > 0
        assert (actual - expected).norm() <= (0 if device == "cpu" else 1e-3) * expected.norm()


@pytest.mark.parametrize("dtype", HALVES)
def test_penalties_of_users_under_autocast(dtype):
    """A backward pass of the user's own. PyTorch's matrix products in it run in half precision: hence the tolerance."""
    D, (_, c), real = Discriminator(**SIZES, dcond="both"), inputs(4), torch.randn([4, 3, 16, 16]).requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            slope, = torch.autograd.grad(D(real, c).sum(), real, create_graph=True)
            slope.square().sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in D.parameters() if p.grad is not None]))
        D.zero_grad()
    assert results[0].norm() > 0
    assert (results[1] - results[0]).norm() <= 20 * torch.finfo(dtype).eps * results[0].norm()


@pytest.mark.parametrize("dtype", HALVES)
def test_augmentation_under_autocast(dtype):
    pipe, image = AugmentPipe(scale=1, rotate=1, imgfilter=1, hue=1), torch.rand([3, 3, 16, 16]) * 2 - 1
    expected = pipe(image, debug_percentile=0.7)
    with torch.autocast("cpu", dtype):
        assert torch.equal(pipe(images=image, debug_percentile=0.7), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_layers_and_ops_take_what_autocast_hands_on(dtype):
    """Features in half precision, weights in float32: in the wider of the two, as PyTorch's own operations of several tensors."""
    x, b, styles = torch.randn([2, 16, 8, 8]).to(dtype), torch.randn([16]), torch.randn([2, 16])
    w, f = torch.randn([16, 16, 3, 3]), upfirdn2d.setup_filter([1, 3, 3, 1])
    wide = [lambda x: bias_act.bias_act(x, b, act="lrelu"), lambda x: filtered_lrelu.filtered_lrelu(x, b=b), lambda x: modulate.modulate(x, styles)]
    for call in wide:
        expected = call(x.float())
        with torch.autocast("cpu", dtype):
            assert torch.equal(call(x), expected)
        with pytest.raises(AssertionError, match="float"):          # without autocast it is a mistake
            call(x)
    with torch.autocast("cpu", dtype):
        y = conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1)
        assert upfirdn2d.upsample2d(x.float(), f).dtype == torch.float32 and upfirdn2d.upsample2d(x, f).dtype == dtype
        layer = networks_stylegan2.SynthesisLayer(16, 16, 16, 8)
        assert layer(x, styles.to(dtype), noise_mode="const").isfinite().all()
    assert_close_rel(y.float(), conv2d_resample.conv2d_resample(x.float(), w, f, up=2, padding=1), 0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Networks of another dtype.

@pytest.mark.parametrize("change, dtype, tolerance", [
    (lambda m: m.double(), torch.float64, 1e-5), (lambda m: m.half(), torch.float32, 0.02), (lambda m: m.bfloat16(), torch.float32, 0.15),
    (lambda m: m.to(torch.float16), torch.float32, 0.02), (lambda m: m.half().float(), torch.float32, 0.02)])
@pytest.mark.parametrize("family", FAMILIES)
def test_generators_of_another_dtype(family, change, dtype, tolerance):
    """half() and bfloat16() change how weights are kept, double() also how the network computes."""
    (z, c), G = inputs(), make_generator(family)
    G.mapping.w_avg += 0.1
    other = change(copy.deepcopy(G))
    for kwargs in (dict(truncation_psi=0.7), dict(force_fp32=True), dict(update_emas=True)):
        image = other(z, c, noise_mode="const", **kwargs)
        assert image.dtype == dtype
        assert_close_rel(image, G(z, c, noise_mode="const", **kwargs), tolerance, str(kwargs))
    image.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in other.parameters() if p.grad is not None)
    filters = [buffer for name, buffer in other.named_buffers() if name.endswith("_filter")]
    assert filters and all(f.dtype == torch.float32 for f in filters)


@pytest.mark.parametrize("change", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
@pytest.mark.parametrize("family", FAMILIES)
def test_networks_of_another_dtype_in_files(family, change):
    """Both come back as they were stored; filters stay float32, also where a file has them in half precision."""
    (z, c), G = inputs(), change(make_generator(family))
    pipe, D = change(AugmentPipe(scale=1)), change(Discriminator(**SIZES, dcond="both"))
    stream = io.BytesIO()
    persistence.dump(dict(G_ema=G, D=D, augment_pipe=pipe), stream)
    stored = legacy.load_network_pkl(io.BytesIO(stream.getvalue()))
    pairs = ((G, stored["G_ema"]), (D, stored["D"]), (pipe, stored["augment_pipe"]), (G, pickle.loads(pickle.dumps(G))))
    for before, after in pairs:
        for (name, expected), actual in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
            assert actual.dtype == expected.dtype and torch.equal(actual, expected), name
    assert torch.equal(stored["G_ema"](z, c, noise_mode="const"), G(z, c, noise_mode="const"))
    for name, buffer in G.named_buffers():
        if name.endswith("_filter"):
            buffer.data = buffer.data.half()
    again = pickle.loads(pickle.dumps(G))
    assert all(buffer.dtype == torch.float32 for name, buffer in again.named_buffers() if name.endswith("_filter"))
    assert again(z, c, noise_mode="const").isfinite().all()


@pytest.mark.parametrize("change, dtype, tolerance", [
    (lambda m: m.double(), torch.float64, 1e-5), (lambda m: m.half(), torch.float32, 0.02), (lambda m: m.bfloat16(), torch.float32, 0.15)])
def test_discriminator_and_augmentation_of_another_dtype(change, dtype, tolerance):
    D, (_, c), image = Discriminator(**SIZES, dcond="both"), inputs(), torch.rand([3, 3, 16, 16]) * 2 - 1
    logits = change(copy.deepcopy(D))(image, c)
    assert logits.dtype == dtype
    assert_close_rel(logits, D(image, c), tolerance)
    pipe = AugmentPipe(scale=1, imgfilter=1, brightness=1)
    assert torch.equal(change(copy.deepcopy(pipe))(image, debug_percentile=0.7), pipe(image, debug_percentile=0.7))


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_on_the_meta_device(family):
    """Shapes without numbers."""
    G, D = make_generator(family).to("meta"), Discriminator(**SIZES, dcond="both").to("meta")
    z, c = (x.to("meta") for x in inputs())
    image = G(z, c)
    assert image.device.type == "meta" and image.shape == (3, 3, 16, 16) and D(image, c).shape == (3, 1)


def test_second_gradients_in_double_precision():
    """G.double() is what gradcheck needs. The latent's path through rays, noise and both resamplings."""
    G = make_generator("raycond2").double().requires_grad_(False)
    z, c = (t.double() for t in inputs(1))
    assert torch.autograd.gradcheck(lambda z: G(z, c, noise_mode="const")[:, :, ::8, ::8], z.requires_grad_(), eps=1e-7, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Labels.

@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_ray_maps_of_integer_labels(dtype):
    c = torch.zeros([1, 25], dtype=dtype)
    c[0, [0, 5, 10, 15, 16, 20, 24]] = 1
    c[0, 7] = 1
    for convention in camera_utils.CONVENTIONS:
        expected = camera_utils.ray_map(c.float(), 4, 4, convention)
        assert expected.abs().max() > 0
        assert torch.equal(camera_utils.ray_map(c, 4, 4, convention), expected)
        with pytest.raises(AssertionError, match="expected a floating dtype"):
            camera_utils.ray_map(c, 4, 4, convention, dtype=torch.int64)
    pose, lens = c[:, :16].view(-1, 4, 4), c[:, 16:].view(-1, 3, 3)
    for embedding in (plucker.plucker_embedding, plucker.origin_dir_embedding, plucker.two_plane_embedding):
        assert torch.equal(embedding(4, 4, lens, pose), embedding(4, 4, lens.float(), pose.float()))
    camera = camera_utils.Camera(pose, lens)
    assert camera.to_label().dtype == camera.mirror().to_label().dtype == torch.float32


@pytest.mark.parametrize("family", ["raycond2", "raycond3"])
def test_networks_take_labels_of_any_dtype(family):
    G, (z, c) = make_generator(family), inputs()
    whole = c.round().long()
    whole[:, [16, 20]] = 4
    assert torch.equal(G(z, whole, noise_mode="const"), G(z, whole.float(), noise_mode="const"))
    assert G(z, c.double(), noise_mode="const").dtype == torch.float32
    assert_close_rel(G(z, c.half(), noise_mode="const"), G(z, c.half().float(), noise_mode="const"), 1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# One for many.

@pytest.mark.parametrize("family", FAMILIES)
def test_one_latent_and_many_cameras(family):
    """And the reverse: equal to as many of both, also through mapping and synthesis."""
    G, (z, c) = make_generator(family), inputs(4)
    for some_z, some_c in ((z[:1], c), (z, c[:1])):
        expected = G(some_z.expand(4, -1), some_c.expand(4, -1), noise_mode="const")
        assert_close_rel(G(some_z, some_c, noise_mode="const"), expected, 1e-5)
        assert_close_rel(G.synthesis(G.mapping(some_z, some_c), some_c, noise_mode="const"), expected, 1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    with pytest.raises(ValueError, match="3 (cameras|labels) for 2 latents; give as many, or one for all"):
        G(z[:2], c[:3])


@pytest.mark.parametrize("dcond", ["pose", "rays", "both"])
def test_one_image_and_many_cameras(dcond):
    D, (_, c) = Discriminator(**SIZES, dcond=dcond, epilogue_kwargs=dict(mbstd_group_size=1)), inputs(4)
    images = torch.randn([4, 3, 16, 16])
    for some, labels in ((images[:1], c), (images, c[:1])):
        assert_close_rel(D(some, labels), D(some.expand(4, -1, -1, -1), labels.expand(4, -1)), 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_latents_give_no_images(family):
    G, (z, c) = make_generator(family), inputs()
    for some_z, some_c in ((z[:0], c[:0]), (z[:0], c[:1]), (z[:1], c[:0])):
        image = G(some_z, some_c)
        assert image.shape == (0, 3, 16, 16)
        image.sum().backward()


@pytest.mark.filterwarnings("ignore:var")
def test_no_images_give_no_logits():
    assert Discriminator(**SIZES, dcond="both")(torch.zeros([0, 3, 16, 16]), inputs()[1][:0]).shape == (0, 1)


def test_gradients_of_one_latent_are_summed_over_its_cameras():
    G, (z, c) = make_generator("raycond2"), inputs(3)
    gradients = []
    for latent in (z[:1].clone(), z[:1].expand(3, -1).clone()):
        gradients.append(torch.autograd.grad(G(latent.requires_grad_(), c, noise_mode="const").square().sum(), latent)[0].sum(dim=0))
    assert_close_rel(gradients[0], gradients[1], 1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What would have kernels read or write beyond their tensors.

@pytest.mark.parametrize("call", [
    lambda ops, x, b: ops.bias_act_cpu(x.double(), b, None, None, 0.2, 1.0, -1.0),
    lambda ops, x, b: ops.bias_act_cpu(x, b.half(), None, None, 0.2, 1.0, -1.0),
    lambda ops, x, b: ops.modulate_cpu(x.bfloat16(), torch.randn([2, 16]), None),
    lambda ops, x, b: ops.modulate_cpu(x, torch.randn([2, 16]).double(), None),
    lambda ops, x, b: ops.up_conv(x.double(), torch.randn([16, 16, 3, 3]).double(), upfirdn2d.setup_filter([1, 3, 3, 1]), [1, 1, 1, 1], 4.0),
], ids=["bias_act_cpu", "bias_act_cpu, bias", "modulate_cpu", "modulate_cpu, styles", "up_conv"])
def test_kernels_refuse_other_dtypes(call):
    """The operators that registered kernels of float32 stand behind, called by themselves."""
    x = torch.randn([2, 16, 64, 64]).to(memory_format=torch.channels_last)
    with pytest.raises(AssertionError, match="for a kernel of torch.float32 on cpu"):
        call(torch.ops.raycond, x, torch.randn([16]))
