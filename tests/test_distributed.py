"""Two processes compute what one computes at the same total batch; so do rounds of gradient accumulation."""

import types

import numpy as np
import pytest
import torch
from helpers import load_golden

from torch_utils import distributed, signals, training_stats
from training import networks_raycond2, networks_raycond3
from training.augment import AugmentPipe
from training.loss import StyleGAN2Loss
from training.networks import discriminator
from training.run.phases import Batch, Stepper, make_phases
from training.run.randomness import PhaseRandom, samples_of

BATCH = 8
STEPS = 4


class TinyData:
    """As much of a data set as the stepper asks for."""

    def __init__(self):
        golden = load_golden("trajectory_raycond2.npz")
        self.images = golden["real_img_uint8"].reshape(-1, 3, 16, 16)
        self.labels = golden["real_c"].reshape(-1, 25)

    def __len__(self):
        return len(self.labels)

    def get_label(self, index):
        return self.labels[index]


def make_stepper(num_rounds=1, family="raycond2"):
    """raycond2 with all regularisers and the camera loss, or raycond3 with augmentation."""
    config = load_golden({"raycond2": "trajectory_raycond2.npz", "raycond3": "trajectory_raycond3t.npz"}[family])["config"]
    network = {"raycond2": networks_raycond2, "raycond3": networks_raycond3}[family]
    torch.manual_seed(0)
    G = network.Generator(**config["G_kwargs"], rays="pinhole").train().requires_grad_(False)
    D = discriminator.Discriminator(**config["D_kwargs"], predicts_camera=family == "raycond2").train().requires_grad_(False)
    pipe = None
    if family == "raycond3":
        pipe = AugmentPipe(brightness=1, contrast=1, lumaflip=1, hue=1, saturation=1, imgfilter=1, noise=1, cutout=1)
        pipe.p.fill_(0.4)
    if family == "raycond2":
        D.camera_predictor.fit_labels(TinyData().labels)
    terms = dict(pl_weight=2, style_mixing_prob=0.9, camera_weight=2) if family == "raycond2" else {}
    loss = StyleGAN2Loss("cpu", G, D, pipe, r1_gamma=1, **terms)
    adam = dict(class_name="torch.optim.Adam", lr=0.002, betas=[0.0, 0.99], eps=1e-8)
    phases = make_phases(G, D, adam, adam, config["G_reg_interval"], 16)
    return Stepper(phases, loss, TinyData(), BATCH, num_rounds, G.z_dim, seed=7, device=torch.device("cpu"))


def batch_of(stepper, step):
    """This rank's part of step `step`."""
    items = np.arange(step * BATCH, (step + 1) * BATCH)[distributed.get_rank() :: distributed.get_world_size()] % len(stepper.training_set)
    data = stepper.training_set
    return Batch(torch.as_tensor(data.images[items]).float() / 127.5 - 1, torch.as_tensor(data.labels[items]))


def first_gradients(stepper):
    """Each phase's gradients from the initial weights, averaged over ranks."""
    out = {}
    for index, phase in enumerate(stepper.phases):
        stepper.accumulate(index, 0, batch_of(stepper, 0), 0)
        params = [p for p in phase.module.parameters() if p.grad is not None]
        distributed.average_([p.grad for p in params])
        out[phase.name] = torch.cat([p.grad.flatten() for p in params])
        stepper.loss.pl_mean.zero_()
    return out


def weights(stepper):
    return torch.cat([p.detach().flatten() for name in ("G", "D") for p in getattr(stepper.loss, name).parameters()])


def run(stepper):
    """(first gradients, update after STEPS steps, running means of G, path length mean, mean of a statistic)"""
    collector = training_stats.Collector()
    grads = first_gradients(stepper)
    before = weights(stepper).clone()
    for step in range(STEPS):
        stepper.step(step, batch_of(stepper, step), step * BATCH)
    collector.update()
    means = torch.cat([b.flatten() for name, b in stepper.loss.G.named_buffers() if name.endswith(("w_avg", "magnitude_ema"))])
    return grads, weights(stepper) - before, means.clone(), stepper.loss.pl_mean.clone(), collector["Loss/D/loss"]


def worker(rank, address, path, family):
    torch.set_num_threads(1)
    distributed.init(rank, 2, torch.device("cpu"), init_method=address, timeout_s=120)
    result = run(make_stepper(family=family))
    if rank == 0:
        torch.save(result, path)
    distributed.shutdown()


def check(result, reference):
    grads, update, means, pl_mean, d_loss = result
    for name, expected in reference[0].items():
        assert float((grads[name] - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), name
        assert float(expected.abs().max()) > 0
    assert float((update - reference[1]).norm() / reference[1].norm()) <= 1e-3
    assert torch.allclose(means, reference[2], rtol=1e-3, atol=1e-6)
    assert torch.allclose(pl_mean, reference[3], rtol=1e-3)
    assert abs(d_loss - reference[4]) <= 1e-4 * abs(reference[4])


@pytest.mark.parametrize("family", ["raycond2", "raycond3"])
def test_two_processes_equal_one(family, tmp_path, one_thread):
    path = tmp_path / "result.pt"
    torch.multiprocessing.spawn(worker, args=(f"tcp://127.0.0.1:{distributed.free_port()}", str(path), family), nprocs=2)
    check(torch.load(path), run(make_stepper(family=family)))


@pytest.mark.parametrize("family, names", [("raycond2", ("Gmain", "Dmain", "Dreg")), ("raycond3", ("Gboth", "Dreg"))])
def test_accumulation_equals_one_pass(family, names, one_thread):
    """But for the phases in which a running mean moves once per round: path length's mean, the magnitudes that Dmain's images of raycond3 hang on."""
    one, two = first_gradients(make_stepper(1, family)), first_gradients(make_stepper(2, family))
    for name in names:
        assert float((one[name] - two[name]).abs().max()) <= 1e-5 * float(one[name].abs().max()), name


@pytest.mark.parametrize("world_size, num_rounds", [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_samples_are_dealt_once_and_in_strides(world_size, num_rounds):
    rounds = [samples_of(rank, world_size, num_rounds, 16) for rank in range(world_size)]
    assert sorted(np.concatenate([s for rank in rounds for s in rank])) == list(range(16))
    assert all(set(np.concatenate(rank) % world_size) == {r} for r, rank in enumerate(rounds))
    halves = np.concatenate([s[: len(s) // 2] for rank in rounds for s in rank])
    assert sorted(halves) == list(range(8))                     # path length regularisation sees the same samples


def test_draws_depend_on_seed_step_phase_and_sample_only():
    a, b = PhaseRandom(1, 2, 3, 8), PhaseRandom(1, 2, 3, 16)
    assert np.array_equal(a.z(5), b.z(5)[:8])
    assert not np.array_equal(a.z(5), PhaseRandom(1, 3, 3, 8).z(5)) and not np.array_equal(a.z(5), PhaseRandom(2, 2, 3, 8).z(5))
    image = torch.zeros(4, 3, 8, 8)
    all_noise = a.draws(np.arange(4)).image_noise(image)
    assert torch.equal(a.draws(np.array([3, 1])).image_noise(image[:2]), all_noise[[3, 1]])
    cutoffs = a.draws(np.arange(8)).mix_cutoff(8, 10, 0.5)
    assert torch.equal(a.draws(np.array([6, 2])).mix_cutoff(2, 10, 0.5), cutoffs[[6, 2]])
    assert cutoffs.min() >= 1 and cutoffs.max() <= 10 and (PhaseRandom(1, 2, 3, 64).draws(np.arange(64)).mix_cutoff(64, 10, 0.0) == 10).all()


def asked_to_stop(rank, device):
    with signals.StopRequest() as stop:
        return stop.asked


def test_processes_hear_what_was_asked_before_they_started(monkeypatch):
    """`train.py --gpus=2 | head -1`: the reader leaves while the first process prints the plan."""
    def spawn(run, args, nprocs, join):
        assert nprocs == 2 and not join
        *_, answers, asked = args
        answers.put(("result", run(0, args[0], 1, "cpu", (), asked=asked)))
        return types.SimpleNamespace(pids=lambda: [], join=lambda: True)

    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    signals.StopRequest.ask(signals.BROKEN_PIPE)
    assert distributed.launch(asked_to_stop, 2, "cpu") == signals.BROKEN_PIPE
    assert distributed.launch(asked_to_stop, 2, "cpu") == 0
