"""StyleGAN3 and raycond3: the layers' geometry, rays on canvases, the input's transform. Reference numbers are in test_networks.py."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import DATA

from camera_utils import Camera, camera_for, ray_map
from camera_utils.rays import image_grid, project
from torch_utils import misc
from training import networks_raycond3, networks_stylegan3
from training.networks import bands
from training.networks.ray_conditioning import RayConditioning
from training.networks.transfer import warm_start
from training.presets import PRESETS

TINY = dict(z_dim=16, w_dim=16, img_resolution=32, img_channels=3, channel_base=256, channel_max=12, num_fp16_res=0, num_layers=6)
GEOMETRY = json.loads((DATA / "raycond3_geometry.json").read_text())


def cameras(count):
    return torch.cat([camera_for("ffhq", yaw=0.3 * i - 0.3, pitch=0.1 * i).to_label() for i in range(count)]).float()


def exact_camera():
    """In float64, and a rotation to that precision."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.linalg.qr(torch.tensor([[1.0, 0.2, 0.1], [-0.2, -1, 0.3], [0.3, 0.1, -1]], dtype=torch.float64))[0]
    pose[:3, 3] = torch.tensor([0.3, 0.2, 2.7])
    pose[:3, 2] *= torch.linalg.det(pose[:3, :3])
    lens = torch.tensor([[4.2647, 0.01, 0.48], [0, 4.1, 0.53], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose[None], lens[None])


def full_size(name):
    """The preset's generator on the meta device, from a name like raycond3-t-512."""
    preset = PRESETS[name.rpartition("-")[0]]
    kwargs = dict(z_dim=512, w_dim=512, c_dim=25 if preset.rays else 0, img_resolution=int(name.rpartition("-")[2]), img_channels=3,
                  channel_base=preset.cbase * preset.G_width, channel_max=preset.cmax * preset.G_width, **dict(preset.synthesis_kwargs))
    family = networks_raycond3 if preset.rays else networks_stylegan3
    with torch.device("meta"):
        return family.Generator(**kwargs)


# --- geometry

@pytest.mark.parametrize("name", GEOMETRY)
def test_layers_are_those_of_the_released_networks(name):
    synthesis = full_size(name).synthesis
    assert synthesis.layer_names == [row["name"] for row in GEOMETRY[name]]
    for row in GEOMETRY[name]:
        layer = getattr(synthesis, row["name"])
        got = dict(name=row["name"], in_channels=layer.in_channels, out_channels=layer.out_channels, in_size=layer.in_size.tolist(),
                   out_size=layer.out_size.tolist(), up=layer.up_factor, down=layer.down_factor, padding=layer.padding, up_taps=layer.up_taps,
                   down_taps=layer.down_taps, fp16=layer.use_fp16)
        assert got == row


@pytest.mark.parametrize("preset", ["t", "r"])
def test_rays_add_only_input_channels(preset):
    """The parameter table of the 512 px networks: six more columns of kernels, six more styles per layer, nothing else."""
    plain, rays = (dict(misc.named_params_and_buffers(full_size(f"{family}-{preset}-512"))) for family in ("stylegan3", "raycond3"))
    assert plain.keys() == rays.keys()
    for name, tensor in rays.items():
        expected = list(plain[name].shape)
        if name.endswith(("affine.weight", "affine.bias")) and ".input." not in name:
            expected[0] += 6
        elif name.endswith(".weight") and ".L" in name:
            expected[1] += 6
        assert list(tensor.shape) == expected, name


def test_bad_rates_are_refused():
    with pytest.raises(AssertionError, match="no multiple"):
        networks_stylegan3.SynthesisLayer(w_dim=4, is_torgb=False, is_critically_sampled=False, use_fp16=False, in_channels=2, out_channels=2, in_size=16,
                                          out_size=16, in_sampling_rate=12, out_sampling_rate=16, in_cutoff=4, out_cutoff=4, in_half_width=2, out_half_width=2)


def test_lowpass_filters():
    f = bands.lowpass_filter(24, cutoff=8, width=8, fs=64)
    radial = bands.lowpass_filter(24, cutoff=8, width=8, fs=64, radial=True)
    assert bands.lowpass_filter(1, cutoff=8, width=8, fs=64) is None
    assert f.shape == (24,) and radial.shape == (24, 24)
    assert torch.allclose(f, f.flip(0)) and torch.allclose(radial, radial.t()) and torch.allclose(radial, radial.flip(0))
    for taps in (f, radial.sum(0)):                             # what a vertical wave, or a horizontal one, meets
        response = [abs(np.sum(taps.double().numpy() * np.exp(-2j * np.pi * freq * np.arange(24) / 64))) for freq in (0, 4, 12, 20)]
        assert abs(response[0] - 1) < 1e-5 and response[1] > 0.97 and response[2] < 0.03 and response[3] < 0.01
    diagonal = sum(radial[i, j].item() * np.exp(-2j * np.pi * 16 / math.sqrt(2) * (i + j) / 64) for i in range(24) for j in range(24))
    assert abs(diagonal) < 0.03                                 # 16 cycles along the diagonal are as high as 16 along an axis


# --- rays

@pytest.mark.parametrize("preset", ["t", "r"])
def test_maps_of_all_layers_agree_with_one_frustum(preset):
    """A world point lies on the ray of the pixel that shows it, on the canvas of every layer, margins included."""
    camera = exact_camera()
    label = camera.to_label()
    synthesis = full_size(f"raycond3-{preset}-128").synthesis
    bound = RayConditioning("pinhole").bind(label)
    seen = set()
    for name in synthesis.layer_names:
        layer = getattr(synthesis, name)
        size, rate = int(layer.in_size[0]), layer.in_sampling_rate
        seen.add((size, rate))
        rays = bound.map(size, size, rate)[0]                   # [6, H, W]
        for i, j in [(0, 0), (size // 2, size // 3), (size - 1, 3)]:
            direction, moment = rays[:3, i, j], rays[3:, i, j]
            point = torch.linalg.cross(direction, moment) + 4 * direction           # the ray's point nearest to the world origin, moved along
            image, depth = project(camera, point[None, None])
            expected = torch.tensor([(j + 0.5 - size / 2) / rate + 0.5, (i + 0.5 - size / 2) / rate + 0.5], dtype=torch.float64)
            assert depth > 0 and torch.allclose(image[0, 0], expected, atol=1e-9), (name, i, j)
    assert (128, 128) in seen and len(seen) > 4
    # The last canvas is the image; an earlier one with margins holds the same rays where their pixels coincide.
    image, canvas = bound.map(128, 128, 128)[0], bound.map(148, 148, 128)[0]
    assert torch.allclose(canvas[:, 10:-10, 10:-10], image, atol=1e-12)


def test_input_and_rays_share_the_canvas():
    """The Fourier features and the ray map of a layer put the same pixel at the same place."""
    x, y = image_grid(36, 36, "pinhole", 16)
    grid = networks_stylegan3._centred(36, 16, torch.device("cpu"))
    assert torch.allclose(x.flatten() - 0.5, grid) and torch.allclose(y.flatten() - 0.5, grid)


def test_published_rays_ignore_the_margin():
    label = cameras(1)
    bound = RayConditioning("published").bind(label)
    assert torch.equal(bound.map(36, 36, 16), ray_map(label, 36, 36, convention="published"))


@pytest.mark.parametrize("rays", ["pinhole", "published"])
def test_every_layer_sees_the_camera(rays):
    torch.manual_seed(0)
    G = networks_raycond3.Generator(c_dim=25, rays=rays, **TINY).eval()
    z, c = torch.randn(2, 16), cameras(2).requires_grad_()
    ws = G.mapping(z, c)
    assert torch.equal(ws, G.mapping(z, c.flip(0)))             # identity is in z
    G.synthesis(ws, c).square().sum().backward()
    assert c.grad.isfinite().all() and c.grad.abs().max() > 0
    for name in G.synthesis.layer_names:
        weight = getattr(G.synthesis, name).weight
        assert weight.grad[:, -6:].abs().max() > 0, name


def test_one_camera_for_all_latents():
    torch.manual_seed(0)
    G = networks_raycond3.Generator(c_dim=25, rays="pinhole", **TINY).eval()
    z, c = torch.randn(2, 16), cameras(1)
    assert torch.allclose(G(z, c), G(z, c.expand(2, -1)), atol=1e-6)
    with pytest.raises(ValueError, match="camera rays"):
        G(z, None)


# --- warm start

@pytest.mark.parametrize("ray_init", ["zero", "random"])
@pytest.mark.parametrize("variant", [{}, dict(conv_kernel=1, use_radial_filters=True)])
def test_warm_start_from_stylegan3(ray_init, variant):
    torch.manual_seed(0)
    source = networks_stylegan3.Generator(c_dim=0, **TINY, **variant).eval()
    source(torch.randn(4, 16), None, update_emas=True)          # a mean of w, magnitudes other than 1
    target = networks_raycond3.Generator(c_dim=25, rays="pinhole", **TINY, **variant).eval()
    report = warm_start(target, source, ray_init)
    assert not report.new and not report.skipped and len(report.widened) == 3 * len(target.synthesis.layer_names)
    z, c = torch.randn(2, 16), cameras(2)
    expected, image = source(z, None), target(z, c)
    error = (image - expected).abs().max() / expected.abs().max()
    if ray_init == "random":
        assert error > 1e-2
        return
    assert error <= 1e-5
    image.square().sum().backward()
    for name in target.synthesis.layer_names:                   # and yet the rays are not cut off
        assert getattr(target.synthesis, name).weight.grad[:, -6:].abs().max() > 0, name


# --- alias-free

def test_user_transform_moves_the_image():
    """A shift by whole pixels shifts what is drawn (equation 1 of the equivariance metrics), but for the canvas's limits."""
    torch.manual_seed(0)
    G = networks_stylegan3.Generator(c_dim=0, **dict(TINY, num_layers=8, channel_max=24)).eval()
    z = torch.randn(1, 16)
    original = G(z, None)
    G.synthesis.input.transform.copy_(torch.tensor([[1, 0, -4 / 32], [0, 1, -8 / 32], [0, 0, 1]]))
    moved = G(z, None)
    # Of all shifts by up to two pixels more or less, the one asked for fits best, and by far better than none.
    errors = {(down, right): (moved[:, :, 4 + down:-12 + down, 4 + right:-12 + right] - original[:, :, 4:-12, 4:-12]).square().mean().item()
              for down in (0, *range(6, 11)) for right in (0, *range(2, 7))}
    assert min(errors, key=errors.get) == (8, 4)
    assert errors[8, 4] < min(error for shift, error in errors.items() if shift != (8, 4)) / 10


def test_magnitudes_are_kept_only_when_asked():
    torch.manual_seed(0)
    G = networks_stylegan3.Generator(c_dim=0, **TINY, magnitude_ema_beta=0.5)
    z = torch.randn(4, 16)
    G(z, None)
    layers = [getattr(G.synthesis, name) for name in G.synthesis.layer_names]
    assert all(layer.magnitude_ema == 1 for layer in layers)
    G(z, None, update_emas=True)
    assert all(layer.magnitude_ema != 1 for layer in layers)
    x = G.synthesis.input(G.mapping(z, None)[:, 0])
    layers[0].magnitude_ema.fill_(1)
    layers[0](x, G.mapping(z, None)[:, 1], update_emas=True)
    assert torch.allclose(layers[0].magnitude_ema, (1 + x.square().mean()) / 2)
