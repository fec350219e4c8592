"""pose_error, view_consistency and fid_by_yaw: their arithmetic, and what they say about networks whose faults are known."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import camera_labels, write_dataset
from metric_helpers import assert_same_results, worker
from toy_views import SIZE, ToyGenerator, toy_labels, toy_world, write_toy

from camera_utils import Camera, camera_for
from dnnlib.util import UserError
from metrics import camera_metrics, detectors, fid_by_yaw, metric_main
from metrics.detectors import pose_regressor, scene_embedding
from metrics.detectors.convnet import read_metadata
from metrics.detectors.training import Recipe, dataset_kwargs_for
from metrics.metric_utils import MetricOptions
from torch_utils import distributed
from training import networks_raycond2, networks_raycond3

NAMES = ["pose_error", "view_consistency"]


def random_directions(count, seed, spread=1.0):
    points = np.random.RandomState(seed).randn(count, 3) * spread + [0, 0, 1]
    return points / np.linalg.norm(points, axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------------
# Angles.

@pytest.mark.parametrize("degrees", [0, 1e-5, 1, 45, 90, 179, 180])
def test_angles(degrees):
    turned = [np.sin(np.radians(degrees)), 0, np.cos(np.radians(degrees))]
    assert pose_regressor.angles_deg(np.array([0, 0, 1]), np.array(turned)) == pytest.approx(degrees, abs=1e-9)


@pytest.mark.parametrize("spread", [0.3, 100])
def test_no_direction_of_a_fine_grid_beats_the_best_constant_one(spread):
    those = random_directions(200, 0, spread)
    grid = random_directions(20000, 1, 100)
    best = min(pose_regressor.angles_deg(those, direction).mean() for direction in grid)
    assert best - 1 < camera_metrics.chance_deg(those) <= best


def test_shuffled_is_the_mean_over_all_pairs():
    a, b = random_directions(7, 0), random_directions(7, 1)
    expected = np.mean([pose_regressor.angles_deg(x, y) for x in a for y in b])
    assert camera_metrics.shuffled_deg(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("up", ["y", "z"])
def test_turns_of_a_network_that_turns_part_of_the_way(up):
    rng = np.random.RandomState(0)
    yaw, pitch = (torch.from_numpy(rng.uniform(-0.7, 0.7, 500)) for _ in range(2))

    def directions_of(yaw, pitch):
        return Camera.look_at(yaw, pitch, 2.7, up=up).forward.numpy()

    found = camera_metrics.turns(directions_of(yaw, pitch), directions_of(0.7 * yaw + 0.1, 0.4 * pitch), up)
    assert found["yaw_slope"] == pytest.approx(0.7) and found["pitch_slope"] == pytest.approx(0.4)
    assert found["yaw"] == pytest.approx(np.degrees(np.abs(0.1 - 0.3 * yaw.numpy()).mean()))
    assert found["pitch"] == pytest.approx(np.degrees(np.abs(0.6 * pitch.numpy()).mean()))


def test_turns_all_around_and_of_cameras_at_one_height():
    yaw = torch.linspace(-3.1, 3.1, 100, dtype=torch.float64)
    asked, seen = (Camera.look_at(angle, 0.2, 2.7).forward.numpy() for angle in (yaw, yaw + 0.3))
    found = camera_metrics.turns(asked, seen, "y")
    assert found["yaw"] == pytest.approx(np.degrees(0.3)) and found["yaw_slope"] == pytest.approx(1)
    assert found["pitch"] == pytest.approx(0, abs=1e-9) and np.isnan(found["pitch_slope"])


# ---------------------------------------------------------------------------------------------------------------------
# Pairs.

def test_pairs_of_both_kinds_are_made_from_the_same_cameras():
    """An embedding that sees nothing but the camera cannot tell the same latent from another one."""
    latent, camera, group = camera_metrics.layout(np.arange(160))
    embedding = np.random.RandomState(0).randn(camera.max() + 1, 5)[camera]
    within, between = camera_metrics.pair_similarities(embedding, latent, camera, group)
    assert len(within) == 10 * 4 * 6 and len(between) == 10 * 6 * 12
    np.testing.assert_allclose(np.unique(within.round(9)), np.unique(between.round(9)))
    assert camera_metrics.compare_pairs(embedding, latent, camera, group)["ratio"] == pytest.approx(1, abs=1e-9)


def test_pairs_by_brute_force():
    rng = np.random.RandomState(0)
    embedding, thing, camera, group = rng.randn(30, 4), rng.randint(3, size=30), rng.randint(3, size=30), rng.randint(2, size=30)
    within, between = [], []
    for i in range(30):
        for j in range(i):
            if group[i] == group[j] and camera[i] != camera[j]:
                cosine = embedding[i] @ embedding[j] / np.linalg.norm(embedding[i]) / np.linalg.norm(embedding[j])
                (within if thing[i] == thing[j] else between).append(cosine)
    found = camera_metrics.pair_similarities(embedding, thing, camera, group)
    np.testing.assert_allclose(np.sort(found[0]), np.sort(within))
    np.testing.assert_allclose(np.sort(found[1]), np.sort(between))


def test_ratio():
    assert camera_metrics.distance_ratio(1.0, 0.2) == 0
    assert camera_metrics.distance_ratio(0.3, 0.3) == 1
    assert camera_metrics.distance_ratio(0.9, -0.1) == pytest.approx(0.1 / 1.1)
    assert camera_metrics.distance_ratio(1.0, 1.0) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Networks of known faults.

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(zip of toy views, its pose regressor, its scene embedding)."""
    return toy_world(tmp_path_factory.getbasetemp())


class ColorStatistics(torch.nn.Module):
    """Stands for Inception: means and spreads of the channels, and where the light is."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = images.float() / 255
        light = x.min(dim=1)[0]
        across = torch.linspace(-1, 1, x.shape[3])
        return torch.cat([x.mean(dim=[2, 3]), x.std(dim=[2, 3]), (light * across).mean(dim=[1, 2])[:, None]], dim=1)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("inception") / "inception.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(ColorStatistics()).save(path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def options(world, G, **kwargs):
    data, pose, scene = world
    usual = dict(G=G, dataset_kwargs=dataset_kwargs_for(data), detectors=dict(pose_regressor=pose, embedding=scene), device="cpu", progress=False)
    return dict(usual, **kwargs)


def measure(world, G, name="pose_error320", **kwargs):
    return metric_main.calc_metric(name, **options(world, G, **kwargs)).results


def test_a_faithful_network(world):
    found = measure(world, ToyGenerator())
    assert found.pose_error320 < 2 * found.pose_error320_real < found.pose_error320_chance
    assert found.view_consistency320_ratio < 0.1 and found.view_consistency320 > 0.9
    metadata = read_metadata(detectors.load("embedding", world[2], "cpu").extra["metadata.json"])
    assert found.view_consistency320_real == metadata["held_out_within"]
    assert found.view_consistency320_real_ratio == (1 - metadata["held_out_within"]) / (1 - metadata["held_out_between"])


def test_a_network_that_ignores_its_camera_is_consistent_and_at_chance(world):
    found = measure(world, ToyGenerator("camera"))
    assert found.view_consistency320 == pytest.approx(1, abs=1e-6) and found.view_consistency320_ratio == pytest.approx(0, abs=1e-6)
    assert found.pose_error320 == pytest.approx(found.pose_error320_shuffled, rel=0.1) and found.pose_error320 > 0.9 * found.pose_error320_chance


def test_a_network_that_ignores_its_latent_has_the_ratio_1_and_the_pose(world):
    found = measure(world, ToyGenerator("latent"))
    assert found.view_consistency320_ratio == pytest.approx(1, abs=1e-3)
    assert found.pose_error320 < 0.5 * found.pose_error320_chance


def test_either_name_gives_both_numbers(world, tmp_path):
    opts = options(world, ToyGenerator(), shared={})
    one, other = (metric_main.calc_metric(f"{name}64", **opts) for name in NAMES)
    assert one.results == other.results and len(opts["shared"]) == 1
    assert measure(world, ToyGenerator(), "view_consistency64") == one.results
    for result in (one, other):
        assert {"pose_error64", "pose_error64_real", "pose_error64_chance", "view_consistency64", "view_consistency64_ratio"} <= set(result.results)
        metric_main.report_metric(result, run_dir=str(tmp_path))
    for name in NAMES:
        line = json.loads((tmp_path / f"metric-{name}64.jsonl").read_text())
        assert line["results"]["pose_error64"] == one.results.pose_error64 and line["results"]["view_consistency64"] == one.results.view_consistency64


def test_names():
    assert {"pose_error", "view_consistency", "fid_by_yaw"} <= set(metric_main.list_valid_metrics())
    assert metric_main.find_metric("pose_error", samples=1000).name == "pose_error1k"


def test_images_do_not_depend_on_the_number_of_processes(world):
    def batches(rank, num_gpus):
        return list(camera_metrics.iterate_views(MetricOptions(**options(world, ToyGenerator(), rank=rank, num_gpus=num_gpus)), 50))

    one = batches(0, 1)
    two = sorted(batches(0, 2) + batches(1, 2), key=lambda batch: batch.index[0])
    assert len(one) == len(two) == 13
    for a, b in zip(one, two):
        assert (a.index == b.index).all() and torch.equal(a.z, b.z) and torch.equal(a.c, b.c) and a.noise_seed == b.noise_seed
    z, c = torch.cat([batch.z for batch in one]), torch.cat([batch.c for batch in one])
    assert torch.equal(z[0], z[3]) and not torch.equal(z[0], z[4])
    assert torch.equal(c[1], c[5]) and not torch.equal(c[0], c[1]) and not torch.equal(c[1], c[17])


def test_two_processes_get_what_one_gets(world, inception, tmp_path, one_thread):
    """70 images: a group and a pass are cut short; two bins of yaw."""
    names = ["pose_error70", "fid_by_yaw70"]
    kwargs = options(world, ToyGenerator(), cache=False)
    kwargs["detectors"]["inception"] = inception
    torch.multiprocessing.spawn(worker, (f"tcp://127.0.0.1:{distributed.free_port()}", kwargs, names, str(tmp_path / "two.json")), nprocs=2)
    for name, results in zip(names, json.loads((tmp_path / "two.json").read_text())):
        one = metric_main.calc_metric(name, **kwargs).results
        assert_same_results(results, one, rel=1e-5)
        assert "fid_by_yaw" not in name or f"{name}_bin1" in one


@pytest.mark.parametrize("name", [*NAMES, "fid_by_yaw"])
def test_a_network_that_has_diverged_has_no_numbers(world, inception, name):
    class Diverged(ToyGenerator):
        def forward(self, z, c):
            return super().forward(z, c) * float("nan")

    found = measure(world, Diverged(), f"{name}64", detectors=dict(pose_regressor=world[1], embedding=world[2], inception=inception))
    assert "diverged" in found[f"{name}64_note"]
    assert {str(value) for value in found.values() if not isinstance(value, str)} == {"nan"}


def test_a_regressor_of_somebody_else_is_judged_on_the_data(world, tmp_path):
    network = torch.jit.load(world[1])
    path = str(tmp_path / "foreign.pt")
    torch.jit.save(network, path)
    found = measure((world[0], path, world[2]), ToyGenerator(), "pose_error64")
    assert found.pose_error64_real == pytest.approx(measure(world, ToyGenerator(), "pose_error64").pose_error64_real, rel=0.3)
    assert "may have been trained" in found.pose_error64_real_from


@pytest.mark.parametrize("family,kwargs", [(networks_raycond2, dict(num_fp16_res=0)), (networks_raycond3, dict(num_layers=4, num_critical=1))])
def test_ray_conditioned_networks(world, family, kwargs):
    torch.manual_seed(0)
    G = family.Generator(z_dim=8, c_dim=25, w_dim=8, img_resolution=SIZE, img_channels=3, channel_base=128, channel_max=8, rays="pinhole",
                         mapping_kwargs=dict(num_layers=1), **kwargs).eval()
    state = torch.get_rng_state()
    found = measure(world, G, "view_consistency64")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.isfinite(value) for value in found.values() if not isinstance(value, str))
    assert found == measure(world, G, "view_consistency64")
    assert found != measure(world, G, "view_consistency64", seed=1)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes.

def refusal(names, opts, samples=None):
    with pytest.raises(UserError) as info:
        metric_main.check_metrics(names, MetricOptions(**opts), samples)
    metric, _, complaint = info.value.message.partition(": ")
    assert "\n" not in complaint and metric.startswith(f"--metrics={names[0]}") and not complaint.startswith("--metrics")
    return info.value.message


@pytest.mark.parametrize("name", NAMES)
def test_neither_number_is_computed_without_the_other(world, tmp_path, name):
    single = write_dataset(tmp_path / "single.zip", camera_labels(40), size=SIZE)
    opts = options(world, ToyGenerator(), dataset_kwargs=dataset_kwargs_for(single), detectors=dict(pose_regressor=world[1]))
    message = refusal([name], opts)
    assert f"--metrics={name}" in message and "shown together" in message and "shows no scene twice" in message and "--embedding=FILE" in message
    opts = options(world, ToyGenerator(), detectors=dict(embedding=world[2]))
    message = refusal([name], opts)
    assert "prepare --metrics=pose_error" in message and "python -m metrics.pose_regressor" in message and world[0] in message


def test_other_mistakes(world):
    assert "64" in refusal(["pose_error"], options(world, ToyGenerator()), samples=20)
    swapped = dict(pose_regressor=world[2], embedding=world[1])
    assert "128 numbers per image, expected 3" in refusal(["pose_error"], options(world, ToyGenerator(), detectors=swapped))
    G = ToyGenerator()
    G.c_dim = 0
    assert "no cameras" in refusal(["view_consistency"], options(world, G))


def test_prepared_files_are_found_by_the_data(world, tmp_path, monkeypatch):
    kwargs = dataset_kwargs_for(world[0])
    quick = Recipe(kimg=0.1, batch=32)
    asked = []

    def quickly(train):
        return lambda data, path, recipe: asked.append(recipe.device) or train(data, path, quick, progress=False)

    monkeypatch.setattr(pose_regressor, "train_pose_regressor", quickly(pose_regressor.train_pose_regressor))
    monkeypatch.setattr(scene_embedding, "train_scene_embedding", quickly(scene_embedding.train_scene_embedding))
    opts = options(world, ToyGenerator(), detectors={})
    opts["dataset_kwargs"]["xflip"] = True
    refusal(["pose_error"], opts)
    paths = [detectors.prepare(kind, kwargs, "cuda") for kind in ("pose_regressor", "embedding")]
    assert asked == ["cuda", "cuda"]
    metric_main.check_metrics(NAMES, MetricOptions(**opts))
    assert [MetricOptions(**opts).detector_path(kind) for kind in ("pose_regressor", "embedding")] == paths
    other = write_toy(tmp_path / "other.zip", 30, 2, seed=1)
    refusal(["pose_error"], dict(opts, dataset_kwargs=dataset_kwargs_for(other)))


# ---------------------------------------------------------------------------------------------------------------------
# FID by yaw.

class DarkFromTheLeft(ToyGenerator):
    """Fails where yaw < -0.42: a fifth of the toy cameras."""

    def forward(self, z, c):
        yaw = Camera.from_label(c).yaw_pitch()[0]
        return torch.where((yaw < -0.42)[:, None, None, None], torch.tensor(-1.0), super().forward(z, c))


def test_bins_hold_equally_many():
    yaw = np.random.RandomState(0).randn(1003)
    edges, number = fid_by_yaw.yaw_bins(yaw, 5, 100)
    counts = np.bincount(number)
    assert len(edges) == 6 and counts.max() - counts.min() <= 1
    for b in range(5):
        assert edges[b] <= yaw[number == b].min() and yaw[number == b].max() <= edges[b + 1]
    assert len(fid_by_yaw.yaw_bins(yaw, 5, 300)[0]) == 4                                # three bins of 334
    assert len(fid_by_yaw.yaw_bins(np.zeros(1000), 5, 100)[0]) == 2                     # one place: one bin
    edges, number = fid_by_yaw.yaw_bins(np.repeat([-1.0, 0, 0, 0, 0, 1], 100), 5, 100)
    assert np.bincount(number).min() >= 100 and len(edges) - 1 == len(np.bincount(number)) >= 2


@pytest.mark.parametrize("name", ["ffhq", "cars", "procedural-cars"])
@pytest.mark.parametrize("reach", [0.05, 0.4, 3.0])
def test_bins_are_of_the_yaw_in_the_world_of_the_data_set(name, reach):
    """Whichever axis is up. The pose regressor needs no such axis: its directions are in the labels' own frame."""
    yaw, pitch = torch.linspace(-reach, reach, 60), torch.linspace(0.1, 0.3, 60)
    labels = camera_for(name, yaw, pitch).to_label()

    class Items:
        def __len__(self):
            return len(labels)

        def get_label(self, i):
            return labels[i].numpy()

    np.testing.assert_allclose(fid_by_yaw.yaw_rad(Items()), yaw, atol=1e-5)


def test_the_bad_bin_is_found(world, inception, monkeypatch):
    monkeypatch.setattr(fid_by_yaw, "MIN_REALS", 50)
    opts = options(world, DarkFromTheLeft(), detectors=dict(inception=inception))
    metric_main.check_metrics(["fid_by_yaw400"], MetricOptions(**opts))
    found = metric_main.calc_metric("fid_by_yaw400", **opts).results
    fids = [found[f"fid_by_yaw400_bin{b}"] for b in range(5)]
    assert fids[0] > 10 * max(fids[1:])
    assert found.fid_by_yaw400 == pytest.approx(np.mean(fids))
    yaw = fid_by_yaw.yaw_rad(MetricOptions(**opts).dataset())
    assert found.fid_by_yaw400_bin0_is.startswith(f"yaw {np.degrees(yaw.min()):.1f} to ")
    assert all(found[f"fid_by_yaw400_bin{b}_is"].endswith("deg, 80 real and 80 generated images") for b in range(5))


def test_too_few_reals_for_two_bins_are_refused(world, inception, tmp_path):
    few = write_toy(tmp_path / "few.zip", 150, 2)
    message = refusal(["fid_by_yaw"], options(world, ToyGenerator(), dataset_kwargs=dataset_kwargs_for(few), detectors=dict(inception=inception)))
    assert "300 images" in message and "do not fill two bins" in message


def test_yaw_is_that_of_the_camera(world):
    dataset = replace(MetricOptions(**options(world, ToyGenerator()))).dataset()
    np.testing.assert_allclose(fid_by_yaw.yaw_rad(dataset), Camera.from_label(toy_labels(400)).yaw_pitch()[0].numpy(), atol=1e-5)
