"""The named parts of the training loop, each alone."""

import copy
import dataclasses
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch

import train
from camera_utils import Camera, camera_for, camera_stats
from dnnlib import UserError
from torch_utils import misc, training_stats
from training.loss import StyleGAN2Loss
from training.networks import layers
from training.networks.discriminator import MinibatchStdLayer
from training.presets import PRESETS, lookup
from training.run.ada import AdaptiveStrength, FixedStrength, NoAugmentation
from training.run.config import DataInfo, Options, build_config, preset_of
from training.run.phases import GeneratorEMA, Phase, lazy_optimizer, update_weights
from training.run.snapshots import grid_size, sweep_labels, to_uint8
from training.run.state import Counters
from training.run.status import Status, read_stats

# ---------------------------------------------------------------------------------------------------------------------
# EMA

def test_ema_half_life():
    G = torch.nn.Linear(2, 2)
    ema = GeneratorEMA(G, kimg=10, rampup=0.05)
    assert ema.beta(cur_nimg=10_000, batch_size=32) == pytest.approx(0.5 ** (32 / 500))         # still ramping up
    assert ema.beta(cur_nimg=10_000_000, batch_size=32) == pytest.approx(0.5 ** (32 / 10_000))
    assert GeneratorEMA(G, kimg=10, rampup=None).beta(0, 32) == pytest.approx(0.5 ** (32 / 10_000))


def test_ema_moves_parameters_and_copies_buffers():
    G = torch.nn.BatchNorm1d(3)
    ema = GeneratorEMA(G, kimg=0.008, rampup=None)              # half-life of 8 images
    with torch.no_grad():
        G.weight.fill_(3.0)
        G.running_mean.fill_(7.0)
    ema.update(G, cur_nimg=8, batch_size=8)
    assert torch.allclose(ema.model.weight, torch.full([3], 2.0)) and torch.equal(ema.model.running_mean, G.running_mean)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Augmentation strength

class Pipe(torch.nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.register_buffer("p", torch.tensor(p))


@pytest.mark.parametrize("sign, direction", [(1.0, 1), (-1.0, -1)])
def test_adaptive_strength_follows_the_signs(sign, direction):
    ada = AdaptiveStrength(Pipe(), target=0.6, interval=4, kimg=500)
    training_stats.report("Loss/signs/real", torch.full([16], sign))
    ada.update(step=4, batch_size=16)
    assert ada.p == pytest.approx(0.5 + direction * 16 * 4 / 500e3)
    training_stats.report("Loss/signs/real", torch.full([16], sign))
    ada.update(step=5, batch_size=16)                           # not due
    assert ada.p == pytest.approx(0.5 + direction * 16 * 4 / 500e3)


def test_strength_never_falls_below_zero_and_may_stand_still():
    ada = AdaptiveStrength(Pipe(0.0))
    training_stats.report("Loss/signs/real", torch.full([4], -1.0))
    ada.update(step=0, batch_size=4)
    assert ada.p == 0
    fixed = FixedStrength(Pipe(0.2))
    fixed.update(0, 4)
    assert fixed.p == pytest.approx(0.2) and NoAugmentation().p == 0 and NoAugmentation().pipe is None


# ---------------------------------------------------------------------------------------------------------------------
# Optimiser steps

def test_lazy_optimizer():
    kwargs = lazy_optimizer(dict(class_name="x", lr=0.002, betas=[0.0, 0.99]), 4)
    assert kwargs["lr"] == pytest.approx(0.0016) and kwargs["betas"] == [0.0, pytest.approx(0.99 ** 0.8)]
    assert all(isinstance(beta, float) for beta in lazy_optimizer(dict(lr=1, betas=[0, 1]), 16)["betas"])


def test_bad_gradients_become_finite():
    module = torch.nn.Linear(3, 1, bias=False)
    module.weight.grad = torch.tensor([[math.nan, math.inf, -math.inf]])
    before = module.weight.detach().clone()
    update_weights(Phase("Gmain", module, torch.optim.SGD(module.parameters(), lr=1.0), 1))
    step = before - module.weight.detach()
    assert step[0, 0] == 0 and step[0, 1] == pytest.approx(1e5, rel=1e-3) and step[0, 2] == pytest.approx(-1e5, rel=1e-3)


def test_blur_fades():
    loss = StyleGAN2Loss("cpu", None, None, blur_init_sigma=10, blur_fade_kimg=200)
    assert [loss.blur_sigma(n) for n in (0, 100_000, 200_000, 900_000)] == [10, 5, 0, 0]
    seen = []
    loss.D = lambda img, c, update_emas: seen.append(img)
    img = torch.zeros(1, 1, 33, 33)
    img[0, 0, 16, 16] = 1
    loss.run_D(img, None, blur_sigma=2.0)
    row = seen[0][0, 0, 16]
    assert float(seen[0].sum()) == pytest.approx(1, abs=1e-4)
    assert float(row[18] / row[16]) == pytest.approx(0.5, rel=1e-4)                             # 2^-(x / sigma)^2


# ---------------------------------------------------------------------------------------------------------------------
# Layers

def test_second_moment_is_one():
    x = layers.normalize_2nd_moment(torch.randn(4, 100) * 7)
    assert torch.allclose(x.square().mean(1), torch.ones(4), atol=1e-4)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_by_its_definition(up, demodulate):
    torch.manual_seed(0)
    x, weight, styles = torch.randn(3, 4, 6, 6).double(), torch.randn(5, 4, 3, 3).double(), torch.randn(3, 4).double()
    noise = torch.randn(3, 1, 6 * up, 6 * up).double()
    f = layers.upfirdn2d.setup_filter([1, 3, 3, 1])
    w = weight[None] * styles[:, None, :, None, None]           # equation 1
    if demodulate:
        w = w / (w.square().sum([2, 3, 4], keepdim=True) + 1e-8).sqrt()                         # equation 3
    expected = torch.cat([layers.conv2d_resample.conv2d_resample(x[i : i + 1], w[i], f=f, up=up, padding=1) for i in range(3)]) + noise
    for fused in (True, False):
        y = layers.modulated_conv2d(x, weight, styles, noise=noise, up=up, padding=1, resample_filter=f, demodulate=demodulate, fused_modconv=fused)
        assert torch.allclose(y, expected, atol=1e-10)


def test_minibatch_std_by_its_definition():
    x = torch.randn(8, 6, 4, 4)
    y = MinibatchStdLayer(group_size=4, num_channels=2)(x)
    assert y.shape == (8, 8, 4, 4) and torch.equal(y[:, :6], x)
    for sample, channel in itertools.product(range(8), range(2)):
        group = x[sample % 2 :: 2, 3 * channel : 3 * channel + 3]
        assert torch.allclose(y[sample, 6 + channel], (group.var(0, unbiased=False) + 1e-8).sqrt().mean().expand(4, 4), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics, status, data order, pictures

def test_statistics_between_updates():
    training_stats.reset()
    collector = training_stats.Collector(regex="Test/.*", keep_previous=False)
    training_stats.report("Test/a", torch.tensor([1.0, 2.0, 3.0]))
    training_stats.report("Test/a", 6)
    training_stats.report0("Test/b", 5.0)
    training_stats.report("Other", 1)
    collector.update()
    assert collector.num("Test/a") == 4 and collector["Test/a"] == pytest.approx(3) and collector.std("Test/a") == pytest.approx(np.std([1, 2, 3, 6]))
    assert set(collector.as_dict()) == {"Test/a", "Test/b"}
    collector.update()
    assert collector.num("Test/a") == 0 and math.isnan(collector["Test/a"])


def test_status_ticks(tmp_path, capsys):
    training_stats.reset()
    counters = Counters(batch_size=10, total_kimg=0.1, kimg_per_tick=0.03)
    status = Status(str(tmp_path), torch.device("cpu"), counters)
    ends = []
    while not counters.done:
        counters.advance()
        status.show_progress()
        if counters.tick_ended:
            ends.append(counters.cur_nimg)
            status.print_tick(0.25)
            status.finish_tick()
            counters.end_tick()
    status.close()
    assert ends == [10, 40, 70, 100]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("tick 1     kimg 0.0") and lines[1].endswith("augment 0.250")
    with open(tmp_path / "stats.jsonl", "a") as stream:
        stream.write('{"cut short by a ki')
    records = read_stats(str(tmp_path))
    assert [round(r["Progress/kimg"]["mean"] * 1000) for r in records] == ends
    assert [r["Progress/step"]["mean"] for r in records] == [1, 4, 7, 10]
    assert all(json.dumps(r) for r in records)


def test_sampler_visits_everything_and_continues_anywhere():
    data = range(10)
    take = lambda **kw: list(itertools.islice(misc.InfiniteSampler(data, seed=3, **kw), 30))    # noqa: E731
    whole = take()
    assert all(sorted(whole[i : i + 10]) == list(range(10)) for i in (0, 10, 20)) and whole[:10] != whole[10:20]
    assert take(rank=1, num_replicas=2)[:15] == whole[1::2]
    assert take(start=7)[:23] == whole[7:]
    assert take(shuffle=False)[:12] == [*range(10), 0, 1]


def test_constant_is_made_once():
    a, b = misc.constant([1, 2, 3]), misc.constant([1, 2, 3])
    assert a is b and a.tolist() == [1, 2, 3] and misc.constant(0.5, shape=[2, 2]).shape == (2, 2)


def test_assert_shape_says_what_it_got():
    misc.assert_shape(torch.zeros(2, 3), [None, 3])
    with pytest.raises(AssertionError, match=r"\[2, 3\], expected \['any', 4\]"):
        misc.assert_shape(torch.zeros(2, 3), [None, 4])


def test_sheets():
    assert grid_size(512, 10_000) == (15, 8) and grid_size(1024, 10_000) == (7, 4) and grid_size(32, 10_000) == (16, 16)
    assert np.prod(grid_size(32, 5)) <= 5 and np.prod(grid_size(512, 1)) == 1
    assert to_uint8(torch.tensor([-2.0, -1, 0, 1, 2])).tolist() == [0, 0, 128, 255, 255]


def test_presets_are_data():
    assert lookup(PRESETS, "raycond2", "--cfg").rays
    with pytest.raises(UserError, match="--cfg=stylegan3t: no such name; did you mean stylegan3-t?"):
        lookup(PRESETS, "stylegan3t", "--cfg")
    assert (PRESETS["raycond3-r"].cbase, PRESETS["raycond3-r"].G_width, PRESETS["raycond3-r"].blur_init_sigma) == (32768, 2, 10)
    assert PRESETS["stylegan3-t"].glr == 0.0025 and PRESETS["stylegan3-t"].dlr == 0.002 and PRESETS["stylegan3-t"].mapping_layers == 2


CHANGES = [
    lambda part: part.update(x=1), lambda part: part.__setitem__("x", 1), lambda part: setattr(part, "x", 1), lambda part: part.pop("path", 0),
    lambda part: part.setdefault("x", 1), lambda part: part.clear(), lambda part: part.popitem(), lambda part: part.__ior__(dict(x=1)),
    lambda part: part.__delitem__(next(iter(part))), lambda part: delattr(part, next(iter(part)))]


def test_a_configuration_refuses_changes():
    options = Options(outdir="x", data="y", cfg="raycond2")
    data = DataInfo("none", 8, 16, num_channels=3, label_dim=25, has_camera_labels=True, kwargs=dict(path="y", xflip=False))
    plan = build_config(options, preset_of(options), data)
    before = json.dumps(plan.config)
    copies = copy.deepcopy(plan.config), pickle.loads(pickle.dumps(plan.config))
    for config in (plan.config, *copies):
        for part in (config, config.G_kwargs, config.G_kwargs.mapping_kwargs, config.training_set_kwargs):
            for change in CHANGES:
                with pytest.raises(TypeError, match="does not change"):
                    change(part)
        assert not hasattr(config.G_opt_kwargs.betas, "append") and json.dumps(config) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.config = {}
    other = plan.with_values(["a note"], total_kimg=3)
    assert (other.config.total_kimg, other.notes[-1]) == (3, "a note") and json.dumps(plan.config) == before and "a note" not in plan.notes


def test_options_have_one_default():
    """That of config.Options; train.py has no other."""
    given = train.main.make_context("train", ["--outdir=x", "--data=x"]).params
    for field in dataclasses.fields(Options):
        if field.default is not dataclasses.MISSING:
            assert given[field.name] == field.default, field.name


@pytest.mark.parametrize("low, high", [(-0.6, 0.6), (-math.pi, math.pi)])
def test_view_sheet_shows_no_view_twice(low, high):
    yaw = np.linspace(low, high, 64)
    labels = torch.cat([camera_for("cars", yaw=float(angle), pitch=0.3).to_label() for angle in yaw])
    sweep = sweep_labels(camera_stats(labels), 7)
    angles, pitch = Camera.from_label(sweep).yaw_pitch("z")
    torch.testing.assert_close(pitch, torch.full([7], 0.3))
    gaps = torch.remainder(angles[None, :] - angles[:, None] + math.pi, 2 * math.pi) - math.pi
    assert sweep.shape == (7, 25) and gaps.abs()[~torch.eye(7, dtype=torch.bool)].min() > 0.1
