"""The camera loss: D learns to tell cameras from real images, G is rewarded for showing the one asked for."""

import json
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import SMALL, camera_labels
from helpers import assert_refused, options_of, run_train
from toy_views import draw_toy, toy_labels

import legacy
import train
from torch_utils import persistence
from training.loss import StyleGAN2Loss
from training.networks.discriminator import CameraPredictor, Discriminator
from training.networks.transfer import compare
from training.networks_raycond2 import Generator

SMALL_D = dict(c_dim=25, img_resolution=16, img_channels=3, channel_base=128, channel_max=16)


def make_D(**kwargs):
    torch.manual_seed(0)
    return Discriminator(**SMALL_D, **kwargs).train()


def make_G():
    torch.manual_seed(1)
    return Generator(z_dim=8, c_dim=25, w_dim=8, img_resolution=16, img_channels=3, channel_base=128, channel_max=16, rays="pinhole").train()


def labels(count, seed=0):
    return torch.tensor(camera_labels(count, seed), dtype=torch.float32)


def gradients(phase, D, G=None, cur_nimg=0, **loss):
    """What one phase leaves in the networks that train in it."""
    G = make_G() if G is None else G
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    trained = G if phase[0] == "G" else D
    for module in (G, D):
        module.requires_grad_(module is trained)
    torch.manual_seed(3)
    StyleGAN2Loss("cpu", G, D, r1_gamma=1, **loss).accumulate_gradients(
        phase, images, labels(4), torch.randn(4, 8), labels(4, seed=5), gain=1, cur_nimg=cur_nimg)
    return {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------------------------------------------------------------
# The predictor.

def test_it_learns_cameras_from_images():
    """Of scenes that it has not seen: where the spot is, whatever the wall."""
    torch.manual_seed(0)
    predictor = CameraPredictor(25, 3, 16)
    c = toy_labels(700)
    images = draw_toy(torch.rand(700, 3), c)
    predictor.fit_labels(c.numpy())
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.002, betas=(0.0, 0.99))
    assert predictor.error(images[600:], c[600:]).mean().item() == pytest.approx(1, abs=0.15)
    for _ in range(120):
        batch = torch.randint(600, [16])
        optimizer.zero_grad()
        predictor.error(images[batch], c[batch]).mean().backward()
        optimizer.step()
    assert predictor.error(images[600:], c[600:]).mean() < 0.25


def test_constants_of_the_label_count_for_nothing():
    predictor = CameraPredictor(25, 3, 16)
    c = labels(50)
    predictor.fit_labels(c.numpy())
    constant = (c.std(dim=0) < 1e-4)
    assert constant.sum() >= 13 and torch.equal(predictor.label_scale == 0, constant)
    images = torch.randn(5, 3, 16, 16)
    before = predictor.error(images, c[:5])
    assert torch.equal(predictor.error(images, c[:5] + constant), before)
    assert not torch.equal(predictor.error(images, c[:5] + ~constant), before)


def test_each_sample_by_itself_and_large_images_by_their_means():
    torch.manual_seed(0)
    predictor = CameraPredictor(25, 3, 128)
    images = torch.randn(3, 3, 128, 128)
    y = predictor(images)
    assert predictor.size == 32 and torch.allclose(predictor(images[1:2]), y[1:2], atol=1e-5)
    small = torch.nn.functional.interpolate(images, scale_factor=0.25, mode="area")
    assert torch.allclose(predictor(small), y, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    predictor = CameraPredictor(25, 3, 16)
    images = torch.randn(2, 3, 16, 16)
    expected = predictor(images)
    y = predictor.to(dtype)(images.double() if dtype == torch.float64 else images)
    assert y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(y.float(), expected, atol=1e-5 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("name", ["network.pkl", "network.safetensors"])
def test_files_hold_what_it_learned(name, tmp_path):
    D = make_D(predicts_camera=True).eval().requires_grad_(False)
    D.camera_predictor.fit_labels(labels(50).numpy())
    persistence.save(dict(G=None, D=D, G_ema=make_G(), training_set_kwargs=None, camera_stats=None), tmp_path / "network.pkl")
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
        result = CliRunner().invoke(legacy.main, [f"--source={tmp_path / 'network.pkl'}", f"--dest={tmp_path / name}", "--what=all"])
        assert result.exit_code == 0, result.output
    images = torch.randn(2, 3, 16, 16)
    stored = legacy.load_network_pkl(tmp_path / name)["D"].camera_predictor
    assert torch.equal(stored.error(images, labels(2)), D.camera_predictor.error(images, labels(2)))


def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        D = Discriminator(**SMALL_D, predicts_camera=True)
    assert all(p.is_meta for p in D.parameters()) and D.camera_predictor.label_scale.is_meta


# ---------------------------------------------------------------------------------------------------------------------
# The loss.

@pytest.mark.parametrize("phase", ["Gmain", "Gboth", "Dmain", "Dreg", "Dboth"])
def test_off_is_the_published_loss_to_the_bit(phase):
    plain, able = make_D(), make_D(predicts_camera=True)
    expected, found = gradients(phase, plain), gradients(phase, able)
    assert expected and {name for name in found} == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_d_learns_from_real_images_alone_and_its_other_weights_do_not_notice():
    D = make_D(predicts_camera=True)
    D.camera_predictor.fit_labels(labels(50).numpy())
    off, on = gradients("Dmain", D), gradients("Dmain", D, camera_weight=0.1)
    own = {name for name in on if name.startswith("camera_predictor.")}
    assert own == {f"camera_predictor.{name}" for name, _ in D.camera_predictor.named_parameters()}
    assert set(on) - own == set(off) and all(torch.equal(on[name], off[name]) for name in off)
    assert all(on[name].abs().max() > 0 for name in own)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    D.zero_grad()
    D.camera_predictor.error(images, labels(4)).mean().backward()
    for name in own:                     # as if it stood alone, whatever the weight of G's reward
        assert torch.allclose(dict(D.named_parameters())[name].grad, on[name], rtol=1e-5, atol=1e-8), name


def test_g_is_rewarded_for_the_camera_asked_for():
    D = make_D(predicts_camera=True)
    D.camera_predictor.fit_labels(labels(50).numpy())
    off, once, twice = (gradients("Gmain", D, camera_weight=weight) for weight in (0, 1, 2))
    assert set(off) == set(once)
    changed = 0
    for name in off:
        reward = once[name] - off[name]
        changed += bool(reward.abs().max() > 0)
        assert torch.allclose(twice[name] - off[name], 2 * reward, rtol=1e-3, atol=1e-6), name
    assert changed > 0.9 * len(off)
    G = make_G()
    z, c = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), labels(4, seed=5)
    error = D.camera_predictor.error(G(z, c), c).mean()
    gradient = torch.autograd.grad(error, list(G.synthesis.parameters()), allow_unused=True)
    with torch.no_grad():
        for p, g in zip(G.synthesis.parameters(), gradient):
            p -= 0 if g is None else 0.05 * g
        assert D.camera_predictor.error(G(z, c), c).mean() < error


def test_g_meets_it_after_its_start_and_d_at_once():
    D = make_D(predicts_camera=True)
    D.camera_predictor.fit_labels(labels(50).numpy())
    late = dict(camera_weight=2, camera_start_kimg=0.1)
    for phase, nimg, like in (("Gmain", 99, {}), ("Gmain", 100, dict(camera_weight=2)), ("Dmain", 0, dict(camera_weight=2))):
        found, expected = gradients(phase, D, cur_nimg=nimg, **late), gradients(phase, D, **like)
        assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected), (phase, nimg)


# ---------------------------------------------------------------------------------------------------------------------
# The command.

def plan(camera_zip, tmp_path, *args):
    code, output = run_train(f"--outdir={tmp_path}", f"--data={camera_zip}", "--device=cpu", "-n", *args)
    assert code == 0, output
    config = options_of(output)
    return config["D_kwargs"].get("dcond", "pose"), config["D_kwargs"].get("predicts_camera", False), config["loss_kwargs"].get("camera_weight", 0)


PUBLISHED = ("pose", False, 0)


@pytest.mark.parametrize("args, expected", [
    (["--cfg=raycond2"], ("both", True, 2)),
    (["--cfg=raycond2-tiny"], ("both", True, 2)),
    (["--cfg=raycond3-t", "--camera-loss=0.5", "--dcond=pose"], ("pose", True, 0.5)),
    (["--cfg=raycond2", "--camera-loss=0", "--dcond=pose"], PUBLISHED),
    (["--cfg=raycond2", "--rays=published"], PUBLISHED),
    (["--recipe=raycond2-cars"], PUBLISHED),
    (["--recipe=raycond2-cars", "--camera-loss=1"], ("pose", True, 1)),
    (["--cfg=raycond2", "--resume=none"], ("both", True, 2)),
    (["--cfg=stylegan2", "--cond=1"], PUBLISHED),
    (["--cfg=stylegan2", "--cond=1", "--camera-loss=1"], ("pose", True, 1)),
])
def test_who_gets_it(args, expected, camera_zip, tmp_path):
    assert plan(camera_zip, tmp_path, *args) == expected


@pytest.mark.parametrize("args, says", [
    (["--cfg=stylegan2", "--camera-loss=1"], ["--camera-loss=1", "--cond=1"]),
    (["--cfg=raycond2", "--camera-loss=-1"], ["--camera-loss"]),
    (["--cfg=raycond2", "--camera-loss=nan"], ["--camera-loss"]),
])
def test_refused(args, says, camera_zip, tmp_path):
    assert_refused(train.main, f"--outdir={tmp_path}", f"--data={camera_zip}", "-n", *args, says=says)


def test_a_run_knows_its_labels_and_goes_on_as_if_it_had_not_stopped(camera_zip, tmp_path):
    common = [f"--data={camera_zip}", "--cfg=raycond2-tiny", "--tick=0.008", "--snap=1", *SMALL]
    for name, lengths in (("whole", ["0.024"]), ("halves", ["0.008", "0.024"])):
        for kimg in lengths:
            code, output = run_train(f"--outdir={tmp_path / name}", f"--kimg={kimg}", *common)
            assert code == 0, output
    folders = [next((tmp_path / name).iterdir()) for name in ("whole", "halves")]
    whole, halves = (legacy.load_network_pkl(max(folder.glob("network-snapshot-*.pkl"), key=lambda path: path.stat().st_mtime))["D"] for folder in folders)
    assert all(torch.equal(p, halves.state_dict()[name]) for name, p in whole.state_dict().items())
    predictor = whole.camera_predictor
    stored = np.array([label for _, label in json.loads(zipfile.ZipFile(camera_zip).read("dataset.json"))["labels"]])
    assert np.allclose(predictor.label_mean.numpy(), stored.mean(axis=0), atol=1e-5)
    assert "Loss/G/camera" in (folders[0] / "stats.jsonl").read_text()


SMALL_RUN = ["--tick=0.008", "--snap=1", "--gamma=1", "--aug=noaug", *SMALL]


@pytest.fixture(scope="module")
def published_run(camera_zip, tmp_path_factory):
    """(outdir, run folder) of a run as they were before there was a camera loss."""
    outdir = tmp_path_factory.mktemp("runs")
    code, output = run_train(f"--outdir={outdir}", f"--data={camera_zip}", "--cfg=raycond2", "--dcond=pose", "--camera-loss=0", "--kimg=0.008", *SMALL_RUN)
    assert code == 0, output
    folder = next(outdir.iterdir())
    options = json.loads((folder / "training_options.json").read_text())
    del options["camera_loss"]
    (folder / "training_options.json").write_text(json.dumps(options))
    return outdir, folder


@pytest.mark.parametrize("source", ["network-snapshot-000000.pkl", ""])
def test_what_goes_on_stays_as_it_was(source, published_run, camera_zip, tmp_path):
    """Networks and states of before, unless an option says otherwise."""
    _, folder = published_run
    common = ["--cfg=raycond2", f"--resume={folder / source}", *SMALL_RUN]
    assert plan(camera_zip, tmp_path, *common) == PUBLISHED
    if source:
        assert plan(camera_zip, tmp_path, *common, "--camera-loss=1") == ("pose", True, 1)
        assert plan(camera_zip, tmp_path, *common, "--dcond=both") == ("both", False, 0)
        assert plan(camera_zip, tmp_path, *common, "--dcond=rays", "--camera-loss=0") == ("rays", False, 0)
    else:
        assert_refused(train.main, f"--outdir={tmp_path}", f"--data={camera_zip}", "-n", *common, "--camera-loss=1", says=["--resume=", "camera_predictor"])


@pytest.mark.parametrize("dcond", [[], ["--dcond=pose"]])
def test_the_command_of_before_continues_its_run(dcond, published_run, camera_zip):
    outdir, folder = published_run
    command = [f"--outdir={outdir}", f"--data={camera_zip}", "--cfg=raycond2", "--kimg=0.016", *SMALL_RUN, *dcond, "-n"]
    code, output = run_train(*command)
    assert code == 0 and options_of(output)["run_dir"] == str(folder), output
    assert "camera_weight" not in options_of(output)["loss_kwargs"] and "before there was a camera loss" in output
    assert "Not as published" not in output
    code, output = run_train(*command, "--new")
    assert code == 0 and options_of(output)["loss_kwargs"]["camera_weight"] == 2 and "Not as published" in output


def test_a_baseline_of_today_is_another_run(camera_zip, tmp_path):
    command = [f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond2", "--kimg=0.008", *SMALL_RUN]
    assert run_train(*command, "--dcond=pose", "--camera-loss=0")[0] == 0
    code, output = run_train(*command, "-n")
    assert code == 0 and options_of(output)["run_dir"].endswith("00001-raycond2-cameras-gpus1-batch8-gamma1"), output


def state_settings(config):
    return config["D_kwargs"].get("dcond", "pose"), config["D_kwargs"].get("rays"), config["loss_kwargs"].get("camera_weight", 0)


@pytest.mark.parametrize("args, resumed, expected", [
    (["--cfg=stylegan2", "--cond=1", "--dcond=both", "--camera-loss=0.5"], ["--cfg=stylegan2", "--cond=1"], ("both", "pinhole", 0.5)),
    (["--cfg=raycond2", "--camera-loss=0.5"], ["--cfg=raycond2"], ("both", "pinhole", 0.5)),
    (["--cfg=raycond2", "--rays=published"], ["--cfg=raycond2"], ("pose", None, 0)),
])
def test_a_state_goes_on_with_its_own_training(args, resumed, expected, camera_zip, tmp_path):
    common = [f"--data={camera_zip}", *SMALL_RUN]
    code, output = run_train(f"--outdir={tmp_path / 'a'}", "--kimg=0.008", *common, *args)
    assert code == 0, output
    folder = next((tmp_path / "a").iterdir())
    code, output = run_train(f"--outdir={tmp_path / 'b'}", "--kimg=0.016", *common, *resumed, f"--resume={folder}")
    assert code == 0, output
    assert state_settings(options_of(output)) == expected and "Not as published: --camera" not in output


def test_a_network_that_learned_cameras_goes_on_learning_them(camera_zip, tmp_path):
    common = [f"--data={camera_zip}", *SMALL_RUN, "--kimg=0.008", "--cfg=raycond2"]
    assert run_train(f"--outdir={tmp_path / 'a'}", *common)[0] == 0
    network = next((tmp_path / "a").glob("*/network-snapshot-*.pkl"))
    assert plan(camera_zip, tmp_path, *common[1:], f"--resume={network}") == ("both", True, 2)
    assert plan(camera_zip, tmp_path, *common[1:], f"--resume={network}", "--camera-loss=0") == ("both", False, 0)


def test_sources_without_rays_keep_their_noise(camera_zip, tmp_path):
    """Else the first image would not be the source's."""
    common = [f"--data={camera_zip}", *SMALL_RUN, "--kimg=0.008"]
    G = Generator(z_dim=128, c_dim=25, w_dim=128, img_resolution=16, img_channels=3, channel_base=512, channel_max=16, mapping_kwargs=dict(num_layers=4))
    persistence.save(dict(G=G, D=None, G_ema=G, training_set_kwargs=None, camera_stats=None), tmp_path / "noisy.pkl")
    code, output = run_train(f"--outdir={tmp_path / 'runs'}", *common, "--cfg=raycond2-tiny", f"--resume={tmp_path / 'noisy.pkl'}", "-n")
    assert code == 0 and options_of(output)["G_kwargs"]["use_noise"] is True and "has layer noise, which is kept" in output, output


def test_the_predictor_does_not_count_as_a_mismatch():
    """Growing from 16 to 32 px, where it outweighs D and has other sizes."""
    small, large = make_D(predicts_camera=True), Discriminator(**dict(SMALL_D, img_resolution=32), predicts_camera=True)
    report = compare(large, small, network="D")
    assert any(name.startswith("camera_predictor") for name in report.skipped) and report.matched_share > 0.9
