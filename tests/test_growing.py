"""Warm start from a network of smaller images: G begins by upsampling them, D by downsampling."""

import json

import numpy as np
import pytest
import torch
from conftest import camera_labels, write_dataset
from helpers import assert_close_rel, load_golden, run_train
from PIL import Image

import network_files
from torch_utils import misc
from torch_utils.ops import upfirdn2d
from training import networks_raycond2, networks_stylegan2
from training.networks import discriminator
from training.networks.transfer import describe_sizes, warm_start
from training.run import state as training_state
from training.run.snapshots import to_uint8

WIDTH = dict(img_channels=3, channel_base=768, channel_max=40, num_fp16_res=0)
LATENTS = dict(z_dim=48, w_dim=40, mapping_kwargs=dict(num_layers=2))
FAMILIES = {"stylegan2": networks_stylegan2, "raycond2": networks_raycond2}


def generator(family, size, **kwargs):
    c_dim = 25 if family == "raycond2" else 0
    return FAMILIES[family].Generator(c_dim=c_dim, img_resolution=size, **{**LATENTS, **WIDTH, **kwargs})


def judge(size, dcond="pose", **kwargs):
    kwargs = {**WIDTH, **kwargs}
    return discriminator.Discriminator(c_dim=25, img_resolution=size, dcond=dcond, rays="pinhole", **kwargs)


def shuffled(module):
    """The module with noise, biases and a mean of w, as after some training."""
    with torch.no_grad():
        for name, tensor in misc.named_params_and_buffers(module):
            if name.endswith((".bias", "noise_strength", "w_avg")):
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return module


def cameras(count=3):
    return torch.as_tensor(load_golden("disc_camera.npz")["c"][:count], dtype=torch.float32)


FILTER = upfirdn2d.setup_filter([1, 3, 3, 1])


def enlarged(image, times):
    for _ in range(times):
        image = upfirdn2d.upsample2d(image, FILTER)
    return image


def reduced(image, times=1):
    for _ in range(times):
        image = upfirdn2d.downsample2d(image, FILTER)
    return image


def assert_new_blocks_learn(module, report):
    """Every parameter that was grown has a gradient."""
    grown = {name: parameter for name, parameter in module.named_parameters() if name in report.grown}
    for name, parameter in grown.items():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    return set(grown)


# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("before, after, times", [("stylegan2", "stylegan2", 1), ("raycond2", "raycond2", 1),
                                                  ("stylegan2", "raycond2", 1), ("stylegan2", "raycond2", 2)])
def test_first_image_is_the_upsampled_one(before, after, times):
    torch.manual_seed(1)
    small, large = shuffled(generator(before, 16)), generator(after, 16 * 2 ** times)
    report = warm_start(large, small)
    assert not report.skipped and not report.new and not report.unused and report.matched_share == 1
    assert torch.equal(large.mapping.w_avg, small.mapping.w_avg) and large.num_ws == small.num_ws + 2 * times
    z, c = torch.randn(3, 48), cameras()
    for noise_mode in ("const", "none"):
        for psi in (1, 0.5):
            old = small(z, c if before == "raycond2" else None, noise_mode=noise_mode, truncation_psi=psi)
            new = large(z, c, noise_mode=noise_mode, truncation_psi=psi)
            assert_close_rel(new, enlarged(old, times), 1e-5, f"{noise_mode}, {psi}")


def test_new_blocks_of_g_learn_from_the_first_step():
    torch.manual_seed(2)
    large = generator("raycond2", 32)
    report = warm_start(large, shuffled(generator("stylegan2", 16)))
    out = large(torch.randn(4, 48), cameras(4))
    (out * torch.randn_like(out)).sum().backward()
    names = ("weight", "bias", "affine.weight", "affine.bias")
    expected = {f"synthesis.b32.{layer}.{name}" for layer in ("conv0", "conv1", "torgb") for name in names}
    expected |= {f"synthesis.b32.conv{i}.noise_strength" for i in (0, 1)}
    assert assert_new_blocks_learn(large, report) == expected
    rays = large.synthesis.b16.conv1.weight.grad[:, -6:]                    # widened in the same pass
    assert (rays.abs().amax(dim=(1, 2, 3)) > 0).all()

    torch.optim.Adam(large.parameters(), lr=0.002, betas=(0.0, 0.99)).step()
    large.zero_grad()
    fresh = generator("raycond2", 32)
    for network in (large, fresh):
        torch.manual_seed(3)
        out = network(torch.randn(4, 48), cameras(4))
        (out * torch.randn_like(out)).sum().backward()
    for name, parameter in fresh.synthesis.b32.conv0.named_parameters():
        assert large.get_parameter(f"synthesis.b32.conv0.{name}").grad.norm() > 1e-4 * parameter.grad.norm(), name


def judged_downsampled(small, large, img, c):
    """What `small` says of the image of `large`, with its rays where it has some, downsampled."""
    x, cmap = None, small.mapping(None, c) if small.cmap_dim > 0 else None
    img = large.conditioning.bind(c).append_to(img)
    img = reduced(img, times=(large.img_resolution // small.img_resolution).bit_length() - 1)
    channels = small.img_channels + small.conditioning.num_channels         # of rays that `large` lacks it sees zeros
    img = torch.cat([img, torch.zeros(len(img), 6, *img.shape[2:])], dim=1)[:, :channels]
    for res in small.block_resolutions:
        x, img = getattr(small, f"b{res}")(x, img)
    return small.b4(x, img, cmap)


@pytest.mark.parametrize("architecture", ["resnet", "skip", "orig"])
@pytest.mark.parametrize("before, after, times", [("pose", "pose", 1), ("rays", "rays", 1), ("both", "both", 1),
                                                  ("pose", "both", 1), ("both", "pose", 1), ("both", "both", 2)])
def test_discriminator_starts_on_downsampled_images(before, after, times, architecture):
    torch.manual_seed(4)
    kwargs = dict(architecture=architecture, channel_base=1280)
    small, large = judge(16, before, **kwargs), judge(16 * 2 ** times, after, **kwargs)
    report = warm_start(large, shuffled(small), network="D")
    if (before, after, architecture) == ("both", "pose", "skip"):
        assert {name.split(".", 1)[1] for name in report.skipped} == {"fromrgb.weight"}     # kernels are never narrowed
        assert report.grown
        return
    assert not report.skipped and not report.new and not report.unused and report.matched_share == 1
    img, c = torch.randn(4, 3, large.img_resolution, large.img_resolution), cameras(4)
    expected = judged_downsampled(small, large, img, c)
    assert expected.std() > 0.01
    assert_close_rel(large(img, c), expected, 1e-4, "logits")
    if before == after == "pose":
        assert_close_rel(large(img, c), small(reduced(img), c), 1e-4, "logits")
    large(img, c).square().sum().backward()
    new = {name for name, _ in large.named_parameters() if name.startswith(("b32.", "b64."))}
    assert assert_new_blocks_learn(large, report) == new


def test_a_nested_network_grows_too():
    class Pair(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.main, self.trunk = judge(size), judge(size // 2)

    torch.manual_seed(5)
    small, large = Pair(16), Pair(32)
    report = warm_start(large, small, network="D")
    assert not report.new and not report.unused
    img, c = torch.randn(4, 3, 32, 32), cameras(4)
    assert_close_rel(large.main(img, c), small.main(reduced(img), c), 1e-4, "main")
    assert_close_rel(large.trunk(reduced(img), c), small.trunk(reduced(img, times=2), c), 1e-4, "trunk")


def test_a_grown_judge_with_frozen_layers():
    torch.manual_seed(6)
    small, large = judge(16), judge(32, block_kwargs=dict(freeze_layers=3))
    warm_start(large, small, network="D")
    img = torch.randn(4, 3, 32, 32)
    assert_close_rel(large(img, cameras(4)), small(reduced(img), cameras(4)), 1e-4, "logits")


# ---------------------------------------------------------------------------------------------------------------------

def starts_as_initialised(large, small, network, **kwargs):
    """Copies alone: what lies in the new block stays. Returns the report."""
    before = {name: tensor.clone() for name, tensor in misc.named_params_and_buffers(large) if "b32." in name}
    report = warm_start(large, small, network=network, **kwargs)
    assert not report.grown and before
    for name, tensor in misc.named_params_and_buffers(large):
        assert name not in before or torch.equal(tensor, before[name]), name
    return report


def test_the_published_rule_copies_only():
    report = starts_as_initialised(generator("raycond2", 32), generator("stylegan2", 16), "G", ray_init="random")
    assert report.widened and any(name.startswith("synthesis.b32.") for name in report.new)
    starts_as_initialised(judge(32), judge(16), "D", ray_init="random")
    assert "StyleGAN3" not in describe_sizes([report], 16, 32, "a.pkl")[0]


@pytest.mark.parametrize("architecture", ["orig", "resnet"])
def test_generators_without_an_image_at_each_size_say_so(architecture):
    large, small = (generator("stylegan2", size, architecture=architecture) for size in (32, 16))
    report = starts_as_initialised(large, small, "G")
    said, = describe_sizes([report], 16, 32, "a.pkl")
    assert f"G cannot start by resampling: its architecture '{architecture}'" in said
    assert "% of G's parameters fit" in said


def test_a_narrow_discriminator_says_so():
    narrow = dict(channel_base=128, channel_max=16)
    report = starts_as_initialised(judge(32, **narrow), judge(16, **narrow), "D")
    said, = describe_sizes([report], 16, 32, "a.pkl")
    assert "D cannot start by resampling: at 32 px it has 4 channels, and needs 6" in said
    relu = dict(block_kwargs=dict(activation="relu"))
    starts_as_initialised(judge(32, **relu), judge(16, **relu), "D")


def test_networks_of_other_channels_follow_the_old_rule():
    assert starts_as_initialised(generator("stylegan2", 32), generator("stylegan2", 16, channel_max=24), "G").skipped
    starts_as_initialised(judge(32), judge(16, channel_max=24), "D")
    starts_as_initialised(judge(32), judge(16, architecture="orig"), "D")
    starts_as_initialised(judge(32), judge(16, img_channels=1), "D")


# ---------------------------------------------------------------------------------------------------------------------

TINY = ["--cbase=512", "--cmax=32", "--map-depth=2", "--batch=8", "--workers=0", "--device=cpu", "--gamma=1",
        "--aug=noaug", "--tick=0.008", "--snap=1"]


def test_train_grows_and_goes_on_exactly(camera_zip, tmp_path):
    """stylegan2, 16 px -> raycond2, 32 px: the first sheet is the old network's, upsampled; a break changes nothing."""
    assert run_train(f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=stylegan2", "--kimg=0.008", *TINY)[0] == 0
    source = tmp_path / "00000-stylegan2-cameras-gpus1-batch8-gamma1" / "network-snapshot-000000.pkl"
    data = write_dataset(tmp_path / "large.zip", camera_labels(16), size=32)
    command = [f"--data={data}", "--cfg=raycond2", "--dcond=both", f"--resume={source}", *TINY]
    code, output = run_train(f"--outdir={tmp_path / 'planned'}", *command, "--kimg=0.016", "-n")
    said = "16 px, and --data has 32 px: G's new blocks start by upsampling, D's new blocks start by downsampling."
    assert code == 0 and f"{source} makes images of {said}" in output

    code, output = run_train(f"--outdir={tmp_path / 'whole'}", *command, "--kimg=0.016")
    assert code == 0 and "G_ema grown" in output and "b32.conv0" in output, output
    whole, = (tmp_path / "whole").iterdir()
    sheet = np.asarray(Image.open(whole / "fakes_init.png")).astype(int)
    G_ema = network_files.read(str(source))["G_ema"]
    columns, rows = sheet.shape[1] // 32, sheet.shape[0] // 32
    z = torch.from_numpy(np.random.RandomState(0).randn(columns * rows, G_ema.z_dim).astype(np.float32))
    with torch.no_grad():
        images = to_uint8(enlarged(G_ema(z, None, noise_mode="const"), times=1))
    expected = images.numpy().reshape(rows, columns, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(sheet.shape)
    assert expected.std() > 10 and np.abs(sheet - expected).max() <= 1      # one: where rounding falls the other way

    code, _ = run_train(f"--outdir={tmp_path / 'broken'}", *command, "--kimg=0.008")
    assert code == 0
    source.unlink()
    code, output = run_train(f"--outdir={tmp_path / 'broken'}", *command, "--kimg=0.016")
    assert code == 0 and "1 steps are done" in output and "Starting from" not in output, output
    broken, = (tmp_path / "broken").iterdir()
    assert json.loads((broken / "training_options.json").read_text())["img_resolution"] == 32
    states = [training_state.load(training_state.states_of(str(run))[0]) for run in (whole, broken)]
    for network in ("G", "D", "G_ema"):
        for name, tensor in states[0]["networks"][network].items():
            assert torch.equal(tensor, states[1]["networks"][network][name]), name
