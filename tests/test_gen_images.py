"""gen_images.py as a command: which latent and camera goes into which file, and what it answers to mistakes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import gen_images
from camera_utils import Camera, camera_for
from torch_utils import persistence
from training import networks_raycond2, networks_stylegan2
from training.dataset import ImageFolderDataset

ROOT = Path(__file__).parents[1]
STATS = dict(pivot=[0.0, 0.0, 0.2], radius=2.7, focal=4.2647, focal_y=4.2647, principal_point=[0.5, 0.5], up="y", yaw_mean=0.11, pitch_mean=-0.07,
             yaw_range=[-0.4, 0.5], pitch_range=[-0.2, 0.1])


def network(cls=networks_stylegan2.Generator, c_dim=0, img_channels=3, **kwargs):
    """Small, and contrasty enough that different inputs give different pixels."""
    torch.manual_seed(3)
    G = cls(z_dim=8, c_dim=c_dim, w_dim=8, img_resolution=16, img_channels=img_channels, channel_base=128, channel_max=8, num_fp16_res=0,
            mapping_kwargs=dict(num_layers=2), **kwargs).eval().requires_grad_(False)
    for name, param in G.named_parameters():
        if name.endswith("noise_strength"):
            param.fill_(0.5)
    return G


@persistence.persistent_class
class MovingInput(torch.nn.Module):
    """Stands for StyleGAN3: its synthesis has an input with a transform, and shows where the input is sampled."""

    z_dim, c_dim, img_resolution, img_channels = 4, 0, 8, 3

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))
        self.synthesis = torch.nn.Module()
        self.synthesis.input = torch.nn.Module()
        self.synthesis.input.register_buffer("transform", torch.eye(3))

    def forward(self, z, c, truncation_psi=1, noise_mode="const"):
        grid = torch.nn.functional.affine_grid(self.synthesis.input.transform[None, :2], [1, 1, 8, 8], align_corners=False)   # [1, 8, 8, 2]
        image = torch.cat([grid, torch.zeros([1, 8, 8, 1])], dim=3).permute(0, 3, 1, 2)
        return image.expand(len(z), -1, -1, -1) * self.gain


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> (network, path)."""
    folder = tmp_path_factory.mktemp("networks")
    networks = {
        "rays": (network(networks_raycond2.Generator, c_dim=25, rays="pinhole"), STATS),
        "rays_without_stats": (network(networks_raycond2.Generator, c_dim=25), None),
        "camera_label": (network(c_dim=25), STATS),
        "label_without_stats": (network(c_dim=25), None),
        "plain": (network(), None),
        "grey": (network(img_channels=1), None),
        "classes": (network(c_dim=3), None),
        "moving": (MovingInput().eval(), None),
    }
    for name, (G, stats) in networks.items():
        persistence.save(dict(G_ema=G, camera_stats=stats), folder / f"{name}.pkl")
    return {name: (G, folder / f"{name}.pkl") for name, (G, _) in networks.items()}


@pytest.fixture
def run(files, tmp_path):
    def call(name, *options, ok=True):
        """The command's output where it should fail, else the pixels by file name."""
        outdir = tmp_path / "out"
        result = CliRunner().invoke(gen_images.main, [f"--network={files[name][1]}", f"--outdir={outdir}", "--device=cpu", *options])
        if ok:
            assert result.exit_code == 0, result.output
            return {path.name: np.asarray(Image.open(path)) for path in outdir.iterdir()}
        assert result.exit_code == 1, (result.output, result.exception)
        assert not outdir.exists()
        errors = [line for line in result.output.splitlines() if not line.startswith("Loading")]
        assert len(errors) == 1 and errors[0].startswith("Error: "), result.output
        return errors[0]
    return call


def expected(G, seed, c=None, **kwargs):
    """uint8 [H, W, C], by the definition."""
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim)).float()
    c = torch.zeros([1, 0]) if c is None else c
    image = G(z, c, **dict(dict(noise_mode="const"), **kwargs))
    return (image * 127.5 + 128).clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()


def assert_pixels(actual, wanted):
    """Batches may round differently by one level."""
    assert actual.shape == wanted.shape and actual.dtype == np.uint8
    assert np.abs(actual.astype(int) - wanted.astype(int)).max() <= 1


def from_stats(yaw, pitch):
    return Camera.from_stats(STATS, torch.tensor([yaw]), torch.tensor([pitch])).to_label()


# ---------------------------------------------------------------------------------------------------------------------

def test_network_without_cameras(files, run):
    images = run("plain", "--seeds=0,3-4", "--trunc=0.7")
    assert set(images) == {"seed0000.png", "seed0003.png", "seed0004.png"}
    for seed in (0, 3, 4):
        assert_pixels(images[f"seed{seed:04d}.png"], expected(files["plain"][0], seed, truncation_psi=0.7))
    assert (images["seed0000.png"] != images["seed0003.png"]).any()


def test_noise_modes(files, run):
    G = files["plain"][0]
    none = run("plain", "--seeds=5", "--noise-mode=none")["seed0005.png"]
    const = run("plain", "--seeds=5", "--noise-mode=const")["seed0005.png"]
    assert_pixels(none, expected(G, 5, noise_mode="none"))
    assert_pixels(const, expected(G, 5))
    random = run("plain", "--seeds=5", "--noise-mode=random")["seed0005.png"]
    for image in (none, const):
        assert np.abs(random.astype(int) - image).max() > 1
    assert np.abs(none.astype(int) - const).max() > 1


def test_mean_camera_of_the_snapshot_is_the_default(files, run):
    images = run("rays", "--seeds=1-2")
    for seed in (1, 2):
        assert_pixels(images[f"seed{seed:04d}.png"], expected(files["rays"][0], seed, from_stats(0.11, -0.07)))


@pytest.mark.parametrize("name", ["rays", "camera_label"])
def test_every_pitch_with_every_yaw_and_the_grid(files, run, name):
    images = run(name, "--seeds=1-2", "--yaw=-0.4,0,0.4", "--pitch=0,0.2", "--grid", "--batch=5")
    grid = images.pop("grid.png")
    assert len(images) == 12 and grid.shape == (2 * 16, 6 * 16, 3)
    for row, seed in enumerate((1, 2)):
        for view, (yaw, pitch) in enumerate([(-0.4, 0.0), (0.0, 0.0), (0.4, 0.0), (-0.4, 0.2), (0.0, 0.2), (0.4, 0.2)]):
            image = images[f"seed{seed:04d}-view{view:02d}.png"]
            assert_pixels(image, expected(files[name][0], seed, from_stats(yaw, pitch)))
            assert (grid[16 * row : 16 * row + 16, 16 * view : 16 * view + 16] == image).all()
    assert np.abs(images["seed0001-view00.png"].astype(int) - images["seed0001-view02.png"]).max() > 1


def test_cameras_of_a_data_set(files, run):
    G = files["rays_without_stats"][0]
    images = run("rays_without_stats", "--seeds=0", "--cameras=ffhq", "--yaw=0.3")
    assert_pixels(images["seed0000.png"], expected(G, 0, camera_for("ffhq", 0.3, 0.0).to_label()))
    images = run("rays_without_stats", "--seeds=0", "--cameras=cars")                          # the middle of its elevations
    assert_pixels(images["seed0000.png"], expected(G, 0, camera_for("cars", 0.0, np.radians(32.5)).to_label()))


def test_cameras_of_cars_have_z_up(files, run):
    """From the right (yaw 90 degrees) the camera stands at +x, its right axis is +y and its down axis -z."""
    pose, lens = [0, 0, -1, 1.3, 1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, 1], [1.7074, 0, 0.5, 0, 1.7074, 0.5, 0, 0, 1]
    label = torch.tensor([pose + lens])
    images = run("rays_without_stats", "--seeds=0", "--cameras=cars", f"--yaw={np.pi / 2}", "--pitch=0")
    assert_pixels(images["seed0000.png"], expected(files["rays_without_stats"][0], 0, label))
    upright = run("rays_without_stats", "--seeds=0", "--cameras=procedural-cars", f"--yaw={np.pi / 2}", "--pitch=0")
    assert np.abs(images["seed0000.png"].astype(int) - upright["seed0000.png"]).max() > 1


@pytest.mark.parametrize("cameras, here, there", [
    ("cars", "up axis z, radius 1.3, focal length 1.7074", "up axis y, radius 2.7, focal length 4.265"),
    ("procedural-cars", "radius 1.3, focal length 1.7074", "radius 2.7, focal length 4.265"),
    ("ffhq", None, None), ("heads", None, None),
])
def test_cameras_that_contradict_the_snapshot_are_said(files, tmp_path, cameras, here, there):
    options = [f"--network={files['rays'][1]}", f"--outdir={tmp_path}", "--seeds=0", f"--cameras={cameras}"]
    result = CliRunner().invoke(gen_images.main, options)
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.output.splitlines() if "Warning" in line]
    assert warnings == ([] if here is None else [
        f"Warning: --cameras={cameras} has {here}, the cameras that the network was trained on have {there}; "
        "leave --cameras out for those"])


def test_cameras_of_a_file(files, run, tmp_path):
    labels = torch.cat([camera_for("ffhq", yaw, 0.0).to_label() for yaw in (-0.2, 0.3)])
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps(labels.tolist()))
    images = run("rays", "--seeds=7", f"--camera-file={path}")
    assert set(images) == {"seed0007-view00.png", "seed0007-view01.png"}
    for view in range(2):
        assert_pixels(images[f"seed0007-view{view:02d}.png"], expected(files["rays"][0], 7, labels[view : view + 1]))


def test_classes(files, run):
    G = files["classes"][0]
    images = run("classes", "--seeds=0", "--class=2")
    assert_pixels(images["seed0000.png"], expected(G, 0, torch.tensor([[0.0, 0.0, 1.0]])))
    assert np.abs(images["seed0000.png"].astype(int) - expected(G, 0, torch.tensor([[1.0, 0.0, 0.0]]))).max() > 1
    one_hot = torch.nn.functional.one_hot(torch.tensor([4]), 25).float()
    images = run("label_without_stats", "--seeds=0", "--class=4")                              # 25 classes
    assert_pixels(images["seed0000.png"], expected(files["label_without_stats"][0], 0, one_hot))


def test_grey_images_stay_grey(files, run):
    images = run("grey", "--seeds=0-1", "--grid")
    assert images["seed0000.png"].shape == (16, 16) and images["grid.png"].shape == (32, 16)
    assert_pixels(images["seed0001.png"][:, :, None], expected(files["grey"][0], 1))


def test_translate_and_rotate(run):
    """The image moves right by a quarter of its width: what was sampled at x is now sampled at x + 0.25."""
    still = run("moving", "--seeds=0")["seed0000.png"].astype(int)
    moved = run("moving", "--seeds=0", "--translate=0.25,0")["seed0000.png"].astype(int)
    assert np.abs(moved[:, :, 0] - (still[:, :, 0] - 0.25 * 0.5 * 127.5)).max() <= 1.5
    assert (moved[:, :, 1] == still[:, :, 1]).all()
    turned = run("moving", "--seeds=0", "--rotate=90")["seed0000.png"].astype(int)
    assert np.abs(turned[:, :, 0] - (255 - still[:, :, 1])).max() <= 1.5                       # x' = -y, y' = x
    assert np.abs(turned[:, :, 1] - still[:, :, 0]).max() <= 1.5


# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, options, message", [
    ("plain", ["--seeds=1-"], "--seeds=1-"),
    ("plain", ["--seeds=5-3"], "empty"),
    ("plain", ["--seeds=a"], "0,1,4-6"),
    ("plain", ["--seeds=4294967296"], "4294967295"),
    ("plain", ["--seeds=0", "--yaw=0"], "--yaw=0: the network was trained without cameras"),
    ("plain", ["--seeds=0", "--camera-file=x"], "--camera-file=x: the network was trained without cameras"),
    ("plain", ["--seeds=0", "--class=0"], "--class=0: the network knows no classes"),
    ("plain", ["--seeds=0", "--rotate=5"], "--rotate=5: only StyleGAN3"),
    ("plain", ["--seeds=0", "--translate=0,0.5"], "--translate=0,0.5: only StyleGAN3"),
    ("plain", ["--seeds=0", "--translate=1"], "--translate=1: expected two numbers"),
    ("classes", ["--seeds=0"], "--class=0 to 2"),
    ("classes", ["--seeds=0", "--class=3"], "--class=3: the network has 3 classes"),
    ("rays", ["--seeds=0", "--class=3"], "--class=3: the network knows cameras"),
    ("rays", ["--seeds=0", "--yaw=x"], "--yaw=x: expected numbers"),
    ("rays", ["--seeds=0", "--yaw=nan"], "--yaw=nan: expected numbers"),
    ("rays", ["--seeds=0", "--yaw=30"], "0.5236"),
    ("rays", ["--seeds=0", "--pitch=1.6"], "--pitch=1.6"),
    ("rays", ["--seeds=0", "--cameras=ffh"], "--cameras=ffh: .*ffhq"),
    ("rays", ["--seeds=0", "--camera-file=nix.json"], "nix.json"),
    ("rays", ["--seeds=0", "--camera-file=nix.json", "--yaw=0"], "excludes --yaw=0"),
    ("rays", ["--seeds=0", "--camera-file=nix.json", "--cameras=ffhq", "--pitch=0,0.1"],
     "--camera-file=nix.json: excludes --pitch=0,0.1 --cameras=ffhq"),
    ("rays", ["--seeds=0", "--camera-file=nix.json"], "--camera-file=nix.json"),
    ("rays_without_stats", ["--seeds=0", "--yaw=0"], r"--network=\S+: the file has no statistics.*--cameras"),
    ("label_without_stats", ["--seeds=0"], "--cameras.* or --class"),
    ("label_without_stats", ["--seeds=0", "--class=3", "--yaw=0"], "--yaw=0: excludes --class=3"),
])
def test_mistakes_are_answered_in_one_line(run, name, options, message):
    assert re.search(message, run(name, *options, ok=False))


def test_not_a_network(tmp_path):
    result = CliRunner().invoke(gen_images.main, [f"--network={__file__}", "--seeds=0", f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 1 and "test_gen_images.py: not a network file" in result.output
    assert not (tmp_path / "out").exists()


def test_outdir_that_is_a_file(files, tmp_path):
    (tmp_path / "out").write_text("")
    result = CliRunner().invoke(gen_images.main, [f"--network={files['plain'][1]}", "--seeds=0", f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 1 and f"Error: --outdir={tmp_path / 'out'}: cannot create that folder" in result.output


def test_the_command(files, tmp_path):
    command = [sys.executable, str(ROOT / "gen_images.py"), f"--network={files['rays'][1]}", "--seeds=0-1",
               "--yaw", "-0.2,0.2", "--grid", "--outdir=out"]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["grid.png", *(f"seed000{s}-view0{v}.png" for s in (0, 1) for v in (0, 1))]
    assert "Wrote 4 images and grid.png to out." in done.stdout
    help_text = CliRunner().invoke(gen_images.main, ["--help"]).output
    assert "--yaw" in help_text and "python gen_images.py --network=network-snapshot-000100.pkl --seeds=0-7" in help_text


def test_the_grid_does_not_spoil_the_folder_of_images(files, run, tmp_path):
    for options in (["--seeds=0-3", "--grid"], ["--seeds=0", "--grid"]):
        run("plain", *options)
        data = ImageFolderDataset(tmp_path / "out")
        assert len(data) == 4 and data.resolution == 16 and "grid.png" in data.notes[0]
    data = ImageFolderDataset(tmp_path / "out", resolution=16, num_channels=3)
    for seed in range(4):
        assert_pixels(data[seed][0].transpose(1, 2, 0), expected(files["plain"][0], seed))
