"""Warm start from a network without rays."""

import pytest
import torch
from helpers import assert_close_rel, load_golden

from dnnlib import UserError
from torch_utils import misc
from training import networks_raycond2, networks_stylegan2, networks_stylegan3
from training.networks import discriminator
from training.networks.transfer import check_match, describe_sizes, warm_start
from training.run import config as cfg
from training.training_loop import make_networks

SMALL = dict(z_dim=48, w_dim=40, img_resolution=32, img_channels=3, channel_base=768, channel_max=40, num_fp16_res=0)


def test_published_rule():
    golden = load_golden("resume_transfer.npz")
    source = {name.removeprefix("src/"): torch.as_tensor(value) for name, value in golden.items() if name.startswith("src/")}
    plain = networks_stylegan2.Generator(c_dim=0, **SMALL)
    rays = networks_raycond2.Generator(c_dim=25, **SMALL)
    for module, prefix in [(plain, "src/"), (rays, "before/")]:
        state = dict(misc.named_params_and_buffers(module))
        assert set(state) == {name.removeprefix(prefix) for name in golden if name.startswith(prefix)}
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(torch.as_tensor(golden[prefix + name]))
    report = warm_start(rays, plain, ray_init="random")
    for name, tensor in misc.named_params_and_buffers(rays):
        assert torch.equal(tensor, torch.as_tensor(golden["after/" + name])), name
    assert not report.skipped and not report.new and report.matched_share == 1
    assert len(report.widened) == 3 * 7 and set(report.copied + report.widened) == set(source)


@pytest.mark.parametrize("convention", ["pinhole", "published"])
def test_zero_init_keeps_the_image_and_lets_gradients_through(convention):
    torch.manual_seed(1)
    plain = networks_stylegan2.Generator(c_dim=0, **SMALL)
    rays = networks_raycond2.Generator(c_dim=25, rays=convention, **SMALL)
    warm_start(rays, plain)
    z, c = torch.randn(3, 48), torch.as_tensor(load_golden("net_raycond2.npz")["c"])
    for training in (False, True):
        plain.train(training), rays.train(training)
        assert_close_rel(rays(z, c, noise_mode="const"), plain(z, None, noise_mode="const"), 1e-5, "image")
    rays(z, c, noise_mode="const").square().sum().backward()
    layers = [m for m in rays.synthesis.modules() if isinstance(m, networks_stylegan2.SynthesisLayer)]
    assert len(layers) == 7
    for layer in layers:
        assert layer.weight[:, -6:].abs().max() == 0                    # the rays are silent ...
        assert layer.weight.grad[:, -6:].abs().max() > 0                # ... but can be learned from step 0
        assert (layer.affine.bias[-6:] == 1).all()


@pytest.mark.parametrize("dcond", ["rays", "both"])
def test_discriminator_with_rays_keeps_its_first_answer(dcond):
    torch.manual_seed(2)
    kwargs = dict(img_resolution=16, img_channels=3, channel_base=256, channel_max=24, num_fp16_res=0)
    plain = discriminator.Discriminator(c_dim=0 if dcond == "rays" else 25, **kwargs)
    rays = discriminator.Discriminator(c_dim=25, dcond=dcond, rays="pinhole", **kwargs)
    report = warm_start(rays, plain, network="D")
    assert report.widened == ["b16.fromrgb.weight"]
    img, c = torch.randn(4, 3, 16, 16), torch.as_tensor(load_golden("disc_camera.npz")["c"][:4])
    assert_close_rel(rays(img, c), plain(img, c), 1e-5, "logits")
    rays(img, c).sum().backward()
    assert rays.b16.fromrgb.weight.grad[:, -6:].abs().max() > 0


def test_report_counts_and_refuses_a_foreign_network():
    other = networks_stylegan2.Generator(c_dim=0, **dict(SMALL, w_dim=24, channel_max=16))
    report = warm_start(networks_raycond2.Generator(c_dim=25, **SMALL), other)
    assert report.matched_share < 0.5 and report.skipped
    with pytest.raises(UserError, match=r"--resume=x.pkl: only \d+% of the parameters of G match"):
        check_match([report], "x.pkl")
    assert any("skipped" in line and str(len(report.skipped)) in line for line in report.lines())


def test_unconditional_discriminator_gets_a_new_projection():
    kwargs = dict(img_resolution=16, img_channels=3, channel_base=256, channel_max=24, num_fp16_res=0)
    report = warm_start(discriminator.Discriminator(c_dim=25, **kwargs), discriminator.Discriminator(c_dim=0, **kwargs), network="D")
    assert set(report.skipped) == {"b4.out.weight", "b4.out.bias"}
    assert all(name.startswith("mapping.") for name in report.new) and report.new


def test_a_stylegan3_network_of_another_size_keeps_its_own_filters():
    """Layers of one name and shape may be laid out for other bands: the weights are copied, the filters are not; and it is said."""
    torch.manual_seed(4)
    kwargs = dict(z_dim=16, w_dim=16, img_channels=3, channel_base=1024, channel_max=32, num_fp16_res=0, mapping_kwargs=dict(num_layers=1))
    large, small = (networks_stylegan3.Generator(c_dim=0, img_resolution=size, **kwargs) for size in (128, 64))
    before = {name: tensor.clone() for name, tensor in small.named_buffers() if name.endswith("_filter")}
    source = dict(large.named_buffers())
    assert any(name in source and source[name].shape == tensor.shape and not torch.equal(source[name], tensor) for name, tensor in before.items())
    report = warm_start(small, large)
    for name, tensor in small.named_buffers():
        assert name not in before or torch.equal(tensor, before[name]), name
    assert any(name.endswith("up_filter") for name in report.skipped) and report.copied
    said, = describe_sizes([report], 128, 64, "a.pkl")
    assert said.startswith("a.pkl makes images of 128 px, and --data has 64 px") and "StyleGAN3's layers are laid out for one size" in said
    same = warm_start(networks_stylegan3.Generator(c_dim=0, img_resolution=64, **kwargs), small)
    assert not same.skipped and not same.new and describe_sizes([same], 64, 64, "a.pkl") == []


def test_scripts_may_start_from_networks_in_memory():
    options = cfg.Options(cfg="raycond2", outdir="", data="", cbase=128, cmax=16, batch=4, mbstd_group=2)
    info = cfg.DataInfo("none", 8, 16, num_channels=3, label_dim=25, has_camera_labels=True)
    plan = cfg.build_config(options, cfg.preset_of(options), info)
    torch.manual_seed(0)
    G, D, ema = make_networks(plan.config, torch.device("cpu"))
    resumed = plan.with_values(resume_pkl="mine").config
    found = make_networks(resumed, torch.device("cpu"), {"mine": dict(G=G, D=D, G_ema=ema.model)}.get)
    for module, source in zip((*found[:2], found[2].model), (G, D, ema.model)):
        assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), source.state_dict().values()))
