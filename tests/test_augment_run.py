"""Augmentation in a run: its strength, its draws over ranks and rounds, its options."""

import functools
import json

import numpy as np
import pytest
import torch
from conftest import SMALL
from helpers import assert_refused, options_of, run_train
from test_distributed import first_gradients, make_stepper

import legacy
import train
from torch_utils import distributed, training_stats
from training.augment import AugmentPipe
from training.loss import StyleGAN2Loss
from training.presets import AUGMENTATION_SUMS, AUGMENTATIONS, PRESETS
from training.run.ada import AdaptiveStrength, FixedStrength, NoAugmentation, make_augmentation
from training.run.phases import Batch
from training.run.randomness import PhaseRandom
from training.run.status import read_stats


def run(*args):
    code, output = run_train(*args)
    assert code == 0, output
    return output


refused = functools.partial(assert_refused, train.main)


# ---------------------------------------------------------------------------------------------------------------------
# Strength

def test_strength_is_built_from_the_configuration():
    kwargs = dict(class_name="training.augment.AugmentPipe", hue=1)
    assert type(make_augmentation(dict(augment_kwargs=None), "cpu")) is type(make_augmentation({}, "cpu")) is NoAugmentation
    fixed = make_augmentation(dict(augment_kwargs=kwargs, augment_p=0.3), "cpu")
    assert type(fixed) is FixedStrength and fixed.p == pytest.approx(0.3) and fixed.pipe.hue == 1 and fixed.pipe.contrast == 0
    adaptive = make_augmentation(dict(augment_kwargs=kwargs, augment_p=0, ada_target=0.5, ada_interval=8, ada_kimg=100), "cpu")
    assert type(adaptive) is AdaptiveStrength and (adaptive.p, adaptive.target, adaptive.interval, adaptive.kimg) == (0, 0.5, 8, 100)


def test_strength_goes_from_0_to_1_in_its_kimg():
    training_stats.reset()
    ada = AdaptiveStrength(AugmentPipe(hue=1).requires_grad_(False), target=0.6, interval=4, kimg=1)
    ada.pipe.p.zero_()
    for step in range(1, 1 + 1000 // 10):                       # of 10 images
        training_stats.report("Loss/signs/real", torch.ones(10))
        ada.update(step, batch_size=10)
    assert ada.p == pytest.approx(1, abs=1e-5)
    for step in range(1, 5):
        training_stats.report("Loss/signs/real", torch.zeros(10))
        ada.update(step, batch_size=10)
    assert ada.p == pytest.approx(0.96, abs=1e-5)


def strength_worker(rank, address, folder):
    """The ranks disagree on the sign; the mean over both, 0.5, is under the target."""
    torch.set_num_threads(1)
    distributed.init(rank, 2, torch.device("cpu"), init_method=address, timeout_s=120)
    ada = AdaptiveStrength(AugmentPipe(hue=1), target=0.6, interval=1, kimg=1)
    ada.pipe.p.fill_(0.5)
    training_stats.report("Loss/signs/real", torch.full([8], 1.0 if rank == 0 else 0.0))
    ada.update(1, batch_size=16)
    torch.save(ada.p, folder / f"{rank}.pt")
    distributed.shutdown()


def test_ranks_agree_on_the_strength(tmp_path):
    torch.multiprocessing.spawn(strength_worker, args=(f"tcp://127.0.0.1:{distributed.free_port()}", tmp_path), nprocs=2)
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == pytest.approx(0.5 - 0.016)


# ---------------------------------------------------------------------------------------------------------------------
# Draws

def test_fakes_and_reals_of_a_phase_get_different_draws():
    draws = PhaseRandom(1, 2, 3, 8).draws(np.arange(4))
    fake, real = (draws.augment(kind).uniform("hue", [4]) for kind in ("fake", "real"))
    assert not torch.equal(fake, real) and torch.equal(PhaseRandom(1, 2, 3, 8).draws(np.arange(4)).augment("fake").uniform("hue", [4]), fake)
    assert not torch.equal(PhaseRandom(1, 2, 0, 8).draws(np.arange(4)).augment("fake").uniform("hue", [4]), fake)


class Recorder(torch.nn.Module):
    """An augmentation that keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, images, draws=None):
        self.calls.append(draws)
        return images


def stepper_with(pipe, num_rounds=1):
    stepper = make_stepper(num_rounds)
    stepper.loss.augment_pipe = pipe
    return stepper


def test_the_loss_hands_the_draws_on():
    stepper = stepper_with(Recorder())
    first_gradients(stepper)
    keys = [call.key for call in stepper.loss.augment_pipe.calls]
    assert keys == [(7, 0, 0, 0), (7, 0, 2, 0), (7, 0, 2, 1), (7, 0, 3, 1)]       # Gmain: fake; Dmain: fake, real; Dreg: real


def test_the_loss_alone_leaves_them_to_the_global_generator():
    G_and_D = make_stepper().loss
    pipe = Recorder()
    loss = StyleGAN2Loss("cpu", G_and_D.G, G_and_D.D, augment_pipe=pipe)
    loss.G.requires_grad_(True)
    c = torch.as_tensor(make_stepper().training_set.labels[:4])
    loss.accumulate_gradients("Gmain", None, None, torch.zeros(4, loss.G.z_dim), c, gain=1, cur_nimg=0)
    assert pipe.calls == [None]


def strong_pipe():
    pipe = AugmentPipe(**{name: 1 for names in AUGMENTATIONS.values() for name in names}).requires_grad_(False)
    pipe.p.fill_(0.7)
    return pipe


def gradients(num_rounds, rank, world_size, monkeypatch):
    """Of each phase, on this rank; without path length, whose running mean moves once per round."""
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world_size)
    stepper = stepper_with(strong_pipe(), num_rounds)
    monkeypatch.undo()
    data, mine = stepper.training_set, slice(rank, 8, world_size)
    batch = Batch(torch.as_tensor(data.images[:8][mine]).float() / 127.5 - 1, torch.as_tensor(data.labels[:8][mine]))
    out = {}
    for index, phase in enumerate(stepper.phases):
        if phase.name != "Greg":
            stepper.accumulate(index, 0, batch, 0)
            out[phase.name] = torch.cat([p.grad.flatten() for p in phase.module.parameters() if p.grad is not None])
    return out


def test_ranks_and_rounds_draw_what_one_process_draws(monkeypatch):
    whole = gradients(1, 0, 1, monkeypatch)
    rounds = gradients(2, 0, 1, monkeypatch)
    ranks = [gradients(1, rank, 2, monkeypatch) for rank in range(2)]
    for name, expected in whole.items():
        allowed = 1e-4 * float(expected.abs().max())
        assert float((rounds[name] - expected).abs().max()) <= allowed, name
        assert float(((ranks[0][name] + ranks[1][name]) / 2 - expected).abs().max()) <= allowed, name


# ---------------------------------------------------------------------------------------------------------------------
# The command

def test_two_ticks_with_ada(camera_zip, tmp_path):
    output = run("--outdir", tmp_path, "--data", camera_zip, "--cfg=raycond2", "--dcond=pose", "--aug=ada", "--p=0.5", "--kimg=0.048",
                 "--tick=0.016", "--snap=1", *SMALL)
    folder, = tmp_path.iterdir()
    assert "augment 0.500" in output
    options = json.loads((folder / "training_options.json").read_text())
    assert options["augment_kwargs"] == dict(class_name="training.augment.AugmentPipe", **dict.fromkeys(AUGMENTATIONS["color"], 1))
    assert (options["augment_p"], options["ada_target"], options["ada_interval"], options["ada_kimg"]) == (0.5, 0.6, 4, 500)
    pipe = legacy.load_network_pkl(max(folder.glob("network-snapshot-*.pkl")))["augment_pipe"]
    assert type(pipe) is AugmentPipe and abs(float(pipe.p) - 0.5) == pytest.approx(8 * 4 / 500e3, rel=1e-2)        # one move in six steps
    assert read_stats(str(folder))[-1]["Progress/augment"]["mean"] == pytest.approx(float(pipe.p))


def test_two_ticks_with_the_full_set(class_zip, tmp_path):
    run("--outdir", tmp_path, "--data", class_zip, "--cfg=stylegan2", "--cond=1", "--aug=fixed", "--p=0.8", "--augpipe=bgcfnc", "--kimg=0.016",
        "--tick=0.008", *SMALL)
    folder, = tmp_path.iterdir()
    pipe = legacy.load_network_pkl(folder / "network-snapshot-000000.pkl")["augment_pipe"]
    assert float(pipe.p) == pytest.approx(0.8) and {name for name, value in pipe.init_kwargs.items() if value} == set(sum(AUGMENTATIONS.values(), ()))
    assert all(np.isfinite(record["Loss/r1_penalty"]["mean"]) for record in read_stats(str(folder)))


def transforms(options):
    return [name for name in options["augment_kwargs"] if name != "class_name"]


def test_options_of_the_command(camera_zip, class_zip, tmp_path):
    cameras = [f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond2", "-n", *SMALL]
    classes = [f"--outdir={tmp_path}", f"--data={class_zip}", "--cfg=stylegan2", "-n", *SMALL]
    of = lambda *args: options_of(run(*args))                                                    # noqa: E731
    assert of(*cameras, "--aug=noaug")["augment_kwargs"] is None
    fixed = of(*cameras, "--aug=fixed")
    assert fixed["augment_p"] == 0.2 and "ada_target" not in fixed and transforms(fixed) == list(AUGMENTATIONS["color"])
    assert transforms(of(*cameras, "--aug=ada", "--augpipe=color+noise+cutout")) == [*AUGMENTATIONS["color"], "noise", "cutout"]
    ada = of(*classes, "--aug=ada", "--target=0.7")
    assert (ada["augment_p"], ada["ada_target"], ada["ada_kimg"]) == (0, 0.7, 500)
    assert transforms(ada) == [*AUGMENTATIONS["blit"], *AUGMENTATIONS["geom"], *AUGMENTATIONS["color"]]
    unlabelled = of(f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=stylegan2", "--aug=ada", "-n", *SMALL)
    assert "xflip" in transforms(unlabelled)                    # its network sees no camera
    for name in [*AUGMENTATIONS, *AUGMENTATION_SUMS]:
        assert transforms(of(*classes, "--aug=fixed", f"--augpipe={name}")), name


@pytest.mark.parametrize("cfg", PRESETS)
def test_the_default_is_stylegan3s(cfg, camera_zip, class_zip, tmp_path):
    """Adaptive from 0, 500 kimg, target 0.6, every 4; colours only where labels are cameras, and that is said. The small preset has none."""
    rays = PRESETS[cfg].rays
    output = run(f"--outdir={tmp_path}", f"--data={camera_zip if rays else class_zip}", f"--cfg={cfg}", "-n", *SMALL)
    options = options_of(output)
    if cfg.endswith("-tiny"):
        assert options["augment_kwargs"] is None and "a small preset" in output
        return
    assert (options["augment_p"], options["ada_target"], options["ada_interval"], options["ada_kimg"]) == (0, 0.6, 4, 500)
    assert transforms(options) == [name for group in (["color"] if rays else ["blit", "geom", "color"]) for name in AUGMENTATIONS[group]]
    assert ("--aug=ada changes colours only, since the labels are cameras" in output) == rays


def test_a_warm_start_adapts_faster_from_zero(camera_zip, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "check_resume", lambda config, rays_given: [])
    options = options_of(run(f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond2", "--aug=ada", "--resume=some.pkl", "-n", *SMALL))
    assert options["ada_kimg"] == 100 and options["augment_p"] == 0


def test_refusals(camera_zip, class_zip, tmp_path):
    cameras = [f"--outdir={tmp_path / 'runs'}", f"--data={camera_zip}", "--cfg=raycond2", *SMALL]
    for name, part in [("bgc", "blit and geom"), ("blit", "blit"), ("color+geom", "geom"), ("bgcfnc", "blit and geom")]:
        refused(*cameras, "--aug=ada", f"--augpipe={name}", says=[f"--augpipe={name}", f"{part} would move", "camera", "--mirror=1"])
    refused(f"--outdir={tmp_path / 'runs'}", f"--data={camera_zip}", "--cfg=stylegan2", "--cond=1", "--aug=ada", "--augpipe=bg", *SMALL, says=["camera"])
    refused(*cameras, "--aug=ada", "--augpipe=colour", says=["--augpipe=colour", "did you mean color?"])
    refused(*cameras, "--aug=noaug", "--augpipe=color", says=["--augpipe=color", "--aug=ada"])
    refused(*cameras, "--aug=adaptive", says=["--aug", "ada"])
    refused(*cameras, "--aug=fixed", "--p=1.5", says=["--p"])
    assert not (tmp_path / "runs").exists()


def test_p_without_augmentation_is_remarked(camera_zip, tmp_path):
    assert "--p=0.3 has no effect" in run(f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond2", "--aug=noaug", "--p=0.3", "-n", *SMALL)
