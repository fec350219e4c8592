"""Metrics of tiny networks: names, checks, draws, processes, caches."""

import contextlib
import functools
import itertools
import json

import metric_helpers as nets
import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import camera_labels, write_dataset
from dataset_helpers import refusal
from metric_helpers import data, options, value

import dnnlib
import metrics
from camera_utils import ray_map
from metrics import detectors, metric_main, metric_utils
from metrics import table as metric_table
from torch_utils import distributed, persistence
from training.dataset import ImageFolderDataset

pytestmark = pytest.mark.usefixtures("own_cache")

STYLEGAN3 = {"eqt8_int", "eqt8_frac", "eqr8"}


# --- names

def test_names_hold_the_number_of_images():
    for name, full, count in [("fid50k_full", "fid50k_full", 50000), ("fid1k_full", "fid1k_full", 1000), ("fid1234", "fid1234", 1234), ("pr1k3", "pr1k3", 1000),
                              ("pr5003_full", "pr5003_full", 500), ("ppl2_wend", "ppl2_wend", 50000), ("ppl2_wend1k", "ppl2_wend1k", 1000),
                              ("eqt50k_int", "eqt50k_int", 50000), ("is2000", "is2k", 2000)]:
        request = metric_main.find_metric(name)
        assert (request.name, request.num_samples) == (full, count) and metric_main.is_valid_metric(name)
    assert [r.name for r in metric_main.parse_metrics(["fid50k_full", "ppl2_wend", "eqr50k", "fid9k_full"], samples=1000)] == [
        "fid1k_full", "ppl2_wend1k", "eqr1k"]
    assert {"fid50k_full", "kid50k_full", "pr50k3_full", "ppl2_wend", "eqt50k_int", "eqt50k_frac", "eqr50k", "fid50k", "kid50k", "pr50k3",
            "is50k"} <= set(metric_main.list_valid_metrics())
    for name in ("fid", "fid0k_full", "fid_full", "fid50kk", "ppl2", "FID50k"):
        assert not metric_main.is_valid_metric(name)
    assert "did you mean fid50k_full?" in refusal(lambda: metric_main.parse_metrics(["fid50kfull"]))


@pytest.fixture
def own_metrics():
    """Removes the metrics that a test registers."""
    before = dict(metric_table.TABLE)
    yield
    metric_table.TABLE.clear()
    metric_table.TABLE.update(before)


def test_registering_a_metric(own_metrics):
    @metric_main.register_metric("answer{count}", samples=10)
    def answer(opts):
        return {opts.metric: 42 + opts.num_samples, "why": "text is let through"}

    result = metric_main.calc_metric("answer3", device="cpu")
    assert result.results == {"answer3": 45, "why": "text is let through"} and result.metric == "answer3" and result.num_gpus == 1


# --- metrics written for StyleGAN3

NVIDIA = "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/metrics/"


def frechet(opts, url, kwargs, max_real, num_gen):
    """As StyleGAN3's scripts compose it."""
    real = metric_utils.compute_feature_stats_for_dataset(
        opts=opts, detector_url=url, detector_kwargs=kwargs, rel_lo=0, rel_hi=0, capture_mean_cov=True, max_items=max_real).get_mean_cov()
    gen = metric_utils.compute_feature_stats_for_generator(
        opts=opts, detector_url=url, detector_kwargs=kwargs, rel_lo=0, rel_hi=1, capture_mean_cov=True, max_items=num_gen).get_mean_cov()
    return float(np.square(gen[0] - real[0]).sum() + np.real(scipy.linalg.eigvals(gen[1] @ real[1]) ** 0.5).sum() * -2 + np.trace(gen[1] + real[1]))


def test_a_metric_written_for_stylegan3(own_metrics, camera_zip, detector, capsys):
    @metric_main.register_metric
    def my_fid(opts):
        opts.dataset_kwargs.update(max_size=None, xflip=False)
        assert opts.G is G and opts.G_kwargs == dict(truncation_psi=0.5) and opts.dataset_kwargs.path == camera_zip
        assert (opts.num_gpus, opts.rank, opts.device, opts.cache) == (1, 0, torch.device("cpu"), True)
        progress = opts.progress.sub(tag="mine", num_items=2000, rel_lo=0.5, rel_hi=1)
        for i in range(0, 2001, 500):
            progress.update(i)
        return dict(my_fid=frechet(opts, NVIDIA + "inception-v3-2015-12-05.pkl", dict(return_features=True), None, 12), rows=torch.tensor(12))

    assert metric_main.is_valid_metric("my_fid") and "my_fid" in metric_main.list_valid_metrics() and my_fid.__name__ == "my_fid"
    G, asked = nets.raycond2(), []
    dataset_kwargs = dnnlib.EasyDict(data(camera_zip, max_size=20))
    common = dict(G=G, G_kwargs=dict(truncation_psi=0.5), dataset_kwargs=dataset_kwargs, num_gpus=1, rank=0, device=torch.device("cpu"),
                  detectors=dict(inception=detector))
    result = metric_main.calc_metric(metric="my_fid", progress=metric_utils.ProgressMonitor(progress_fn=lambda *done: asked.append(done)), **common)
    assert (result.metric, result.num_gpus, result.results.rows) == ("my_fid", 1, 12) and dataset_kwargs.max_size == 20
    assert result.results.my_fid == pytest.approx(value("fid12_full", progress=False, **common), rel=1e-4)
    assert asked[0] == (0, 1000) and asked[1:4] == [(500, 1000), (750, 1000), (1000, 1000)] and asked[-1] == (1000, 1000) and len(asked) == 8
    assert json.loads(metric_main.report_metric(result))["metric"] == "my_fid" and capsys.readouterr().out.count("\n") == 1
    assert metric_main.check_metrics(["my_fid"], metric_utils.MetricOptions(**common), samples=5)[0].name == "my_fid"
    assert metric_main.find_metric("my_fid8") is None


def test_a_generator_in_training_mode_is_left_as_it_is(camera_zip, detector):
    G = nets.raycond2()
    kwargs = options(G, camera_zip, detector)
    expected = value("is16", **kwargs)
    assert value("is16", **dict(kwargs, G=G.train())) == expected and G.training


def test_detectors_by_address(camera_zip, detector, tmp_path, monkeypatch):
    """NVIDIA's addresses stand for the published detectors, fetched where they are missing; others for the TorchScript file there; no pickle is opened."""
    fetched = []
    monkeypatch.setattr(detectors.files, "open_url", lambda url, **_: fetched.append(url) or open(detector, "rb"))
    assert metric_utils.get_feature_detector_name(NVIDIA + "vgg16.pkl") == "vgg16"
    images = torch.randint(0, 256, [2, 3, 16, 16])
    expected = torch.jit.load(detector)(images.float(), return_features=True)
    for url in (NVIDIA + "inception-v3-2015-12-05.pkl", NVIDIA + "vgg16.pkl", detector, f"file://{detector}", NVIDIA + "vgg16.pkl"):
        network = metric_utils.get_feature_detector(url, device=torch.device("cpu"), num_gpus=1, rank=0, verbose=False)
        assert torch.equal(network(images.float(), return_features=True), expected)
    assert [url.rpartition("/")[2] for url in fetched] == ["inception-2015-12-05.pt", "vgg16.pt"]
    opts = metric_utils.MetricOptions(**dict(options(nets.raycond2(), camera_zip, detector), detectors={}))
    rows = [metric_utils.compute_feature_stats_for_dataset(opts, url, call, capture_all=True, max_items=5).get_all_torch() for url, call in
            [("inception", None), ("inception", "features"), (NVIDIA + "inception-v3-2015-12-05.pkl", dict(return_features=True)), (detector, {})]]
    assert all(torch.equal(other, rows[0]) for other in rows) and rows[0].shape == (5, 16)
    sums = metric_utils.compute_feature_stats_for_dataset(opts, "inception", dict(no_output_bias=True), capture_all=True, max_items=5).get_all().sum(axis=1)
    assert sums == pytest.approx(1)                             # probabilities: the keywords reach the network
    (tmp_path / "mine.pkl").write_bytes(b"\x80\x04N.")
    assert "pickle" in refusal(lambda: metric_utils.get_feature_detector(str(tmp_path / "mine.pkl")))
    assert "TorchScript" in refusal(lambda: metric_utils.get_feature_detector(str(tmp_path / "absent.pt")))


def test_statistics_of_features(tmp_path):
    rows = np.random.RandomState(0).randn(10, 3).astype(np.float32)
    stats = metric_utils.FeatureStats(True, True, 7)
    assert (stats.num_items, stats.num_features, stats.is_full()) == (0, None, False)
    stats.append(rows[:4])
    stats.append_torch(torch.from_numpy(rows[4:]), num_gpus=1, rank=0)
    stats.append(rows)
    assert (stats.num_items, stats.num_features, stats.is_full()) == (7, 3, True) and torch.equal(stats.get_all_torch(), torch.from_numpy(rows[:7]))
    stats.save(tmp_path / "stats.npz")
    for found in (stats, metric_utils.FeatureStats.load(tmp_path / "stats.npz")):
        mean, cov = found.get_mean_cov()
        assert np.allclose(mean, rows[:7].mean(axis=0)) and np.allclose(cov, np.cov(rows[:7], rowvar=False, ddof=0)) and found.num_items == 7
        assert np.array_equal(found.get_all(), rows[:7])


def test_random_labels(camera_zip, detector):
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, detector))
    first, second = itertools.islice(metric_utils.iterate_random_labels(opts, batch_size=6), 2)
    known = {tuple(label) for label in camera_rows(camera_zip)}
    assert first.shape == (6, 25) and all(tuple(label.tolist()) in known for label in (*first, *second)) and not torch.equal(first, second)
    assert torch.equal(next(metric_utils.iterate_random_labels(opts, batch_size=6)), first)
    opts.G = nets.stylegan2()
    assert next(metric_utils.iterate_random_labels(opts, batch_size=6)).shape == (6, 0)


def test_one_latent_and_many_cameras(camera_zip, detector):
    """A Batch with one latent, or with one camera, stands for as many samples as it has numbers."""
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, detector))
    batch = next(metric_utils.iterate_samples(opts, 4))
    for z, c in [(batch.z[:1], batch.c), (batch.z, batch.c[:1]), (batch.z[:1], batch.c[:1])]:
        short = metric_utils.Batch(batch.index, z, c, batch.noise_seed)
        long = metric_utils.Batch(batch.index, z.expand(4, -1), c.expand(4, -1), batch.noise_seed)
        (joined, images), = metric_utils.generated_images(opts, [short, short], 8, "")
        assert torch.equal(images, torch.cat(2 * [metric_utils.generate(opts, long)]))
        assert torch.equal(joined.z, long.z.repeat(2, 1)) and torch.equal(joined.c, long.c.repeat(2, 1))


# --- each metric on each kind of network

@pytest.mark.parametrize("make, zip_name, labels", [
    (nets.raycond2, "camera_zip", True), (nets.stylegan2, "camera_zip", False), (lambda: nets.stylegan2(3), "class_zip", True),
])
def test_metrics_of_stylegan2_networks(make, zip_name, labels, detector, request):
    kwargs = options(make(), request.getfixturevalue(zip_name), detector, labels)
    names = ["fid20_full", "kid20_full", "pr203_full", "ppl2_wend20", "fid20", "kid20", "pr203", "is20"]
    assert len(metric_main.check_metrics(names, metric_utils.MetricOptions(**kwargs))) == 8
    for name in names:
        results = metric_main.calc_metric(name, **kwargs).results
        assert all(key.startswith(name) and np.isfinite(number) for key, number in results.items()), results
        if "ppl" in name or "fid" in name:
            assert results[name] > 0
    assert "StyleGAN3" in refusal(lambda: metric_main.check_metrics(["eqt50k_int"], metric_utils.MetricOptions(**kwargs)))


@pytest.fixture(scope="module")
def camera_zip32(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "cameras32.zip", camera_labels(24), size=32)


@pytest.mark.parametrize("make, labels", [(nets.raycond3, True), (lambda: nets.raycond3("published"), True), (nets.stylegan3, False)])
def test_metrics_of_stylegan3_networks(make, labels, detector, camera_zip32):
    G = make()
    kwargs = options(G, camera_zip32, detector, labels)
    before = G.synthesis.input.transform.clone()
    for name in sorted(STYLEGAN3):
        results = metric_main.calc_metric(name, **kwargs).results
        assert np.isfinite(results[name]), results
        note = results.get(f"{name}_rays")
        assert note.startswith(G.rays) if labels else note is None
    assert torch.equal(G.synthesis.input.transform, before)
    assert value("ppl2_wend8", **kwargs) > 0 and value("fid8_full", **kwargs) > 0


@pytest.mark.parametrize("change", [torch.nn.Module.double, torch.nn.Module.half])
def test_metrics_of_networks_of_another_dtype(change, detector, camera_zip32):
    expected, found = (options(G, camera_zip32, detector) for G in (nets.raycond3(), change(nets.raycond3())))
    for name in ("eqt8_int", "eqt8_frac", "eqr8", "ppl2_wend8", "fid8_full"):
        assert value(name, **found) == pytest.approx(value(name, **expected), rel=0.02)


def test_equivariance_moves_the_camera(detector, camera_zip32, monkeypatch):
    """A generator that shows nothing but its rays: what is measured is known where the camera stays, and nothing is lost where it moves along."""
    G = nets.raycond3()
    kwargs = options(G, camera_zip32, detector)
    monkeypatch.setattr(G.synthesis, "forward", lambda ws, c, **_: ray_map(c, 32, 32)[:, :3])
    moved = [value(name, **kwargs) for name in sorted(STYLEGAN3)]
    G.rays = "published"
    fixed = value("eqt8_int", **kwargs)

    # Whole pixels: the pixels that stay in the image against those at their old place.
    opts = metric_utils.MetricOptions(**kwargs)
    squares, count = 0.0, 0
    for batch in metric_utils.iterate_samples(opts, 8):
        right, down = np.rint(metric_utils.rng(0, "motion", int(batch.index[0])).uniform(-0.125, 0.125, 2) * 32).astype(int)
        image = ray_map(batch.c, 32, 32)[:, :3].double().numpy()
        rows, columns = np.arange(max(down, 0), 32 + min(down, 0)), np.arange(max(right, 0), 32 + min(right, 0))
        difference = image[:, :, rows[:, None], columns] - image[:, :, rows[:, None] - down, columns - right]
        squares, count = squares + np.square(difference).sum(), count + difference.size
    assert fixed == pytest.approx(10 * np.log10(4 * count / squares), abs=1e-4)
    # The operators are off by 2e-3 at most (tests/test_metrics_functions.py), so the root of the mean square is; whole pixels by float32's rounding.
    eqr, frac, whole = moved
    assert min(eqr, frac) > 20 * np.log10(2 / 2e-3) and whole > 20 * np.log10(2 / 1e-5)


def test_path_length_gives_the_camera(detector, camera_zip, monkeypatch):
    G = nets.raycond2()
    seen = []
    forward = type(G.synthesis).forward
    monkeypatch.setattr(type(G.synthesis), "forward", lambda self, ws, c, **kw: seen.append(c) or forward(self, ws, c, **kw))
    value("ppl2_wend4", **options(G, camera_zip, detector))
    labels = {tuple(label) for label in map(list, camera_rows(camera_zip))}
    assert len(seen) == 4 and all(len(c) == 2 and torch.equal(c[0], c[1]) for c in seen)        # both ends of each path
    assert {tuple(c[0].tolist()) for c in seen} <= labels


def camera_rows(path):
    dataset = ImageFolderDataset(path, use_labels=True)
    return [dataset.get_label(i).tolist() for i in range(len(dataset))]


# --- real images

def test_full_metrics_take_all_reals_unmirrored(detector, camera_zip, monkeypatch):
    asked = []
    original = metric_utils.FeatureStats.append
    monkeypatch.setattr(metric_utils.FeatureStats, "append", lambda self, x: asked.append(len(x)) or original(self, x))
    kwargs = options(nets.raycond2(), camera_zip, detector, cache=False)
    kwargs["dataset_kwargs"].update(xflip=True, max_size=32)
    value("fid20_full", **kwargs)
    assert sum(asked) == 64 + 20                                # without the mirrored ones, and whatever training chose
    asked.clear()
    value("fid100", **kwargs)
    assert sum(asked) == 100 + 100                              # of 128 with the mirrored ones


def test_features_of_the_data_set(detector, camera_zip):
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, detector))
    stats = metric_utils.compute_feature_stats_for_dataset(opts, "inception", capture_all=True, capture_mean_cov=True, index=np.array([5, 3, 60]))
    rows = np.concatenate([nets_features(detector, opts.dataset()[i][0]) for i in (5, 3, 60)])
    assert np.allclose(stats.get_all(), rows, atol=1e-6)
    mean, cov = stats.get_mean_cov()
    assert np.allclose(mean, rows.mean(axis=0), atol=1e-6) and np.allclose(cov, np.cov(rows, rowvar=False, ddof=0), atol=1e-6)


def nets_features(path, image):
    return torch.jit.load(path)(torch.from_numpy(image)[None].float(), return_features=True).detach().numpy()


def test_images_of_several_passes_go_to_the_detector_together(camera_zip, detector):
    """Each image is the one of its own pass, and 70 of them in passes of 4 are two calls."""
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, detector))
    with metric_utils.preserve_rng(opts.device):
        together = list(metric_utils.generated_images(opts, metric_utils.iterate_samples(opts, 70), 70, ""))
        alone = [(batch, metric_utils.generate(opts, batch)) for batch in metric_utils.iterate_samples(opts, 70)]
    assert [len(images) for _, images in together] == [64, 6]
    for part in ("index", "z", "c"):
        one, other = (np.concatenate([np.asarray(getattr(batch, part)) for batch, _ in both]) for both in (together, alone))
        assert np.array_equal(one, other), part
    assert torch.equal(torch.cat([images for _, images in together]), torch.cat([images for _, images in alone]))


def test_arguments_of_the_generator(camera_zip32, detector):
    """truncation_psi goes to the mapping, and what a metric says itself is not contradicted."""
    kwargs = options(nets.raycond3(), camera_zip32, detector)
    G_kwargs = dict(truncation_psi=0.5, noise_mode="random")
    for name in ("ppl2_wend8", "eqt8_int", "fid8_full"):
        assert value(name, **kwargs, G_kwargs=G_kwargs) != value(name, **kwargs)


# --- draws

def test_the_same_samples_again_and_for_any_number_of_images(camera_zip, detector):
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, detector))
    few, many = ([metric_utils.generate(opts, batch) for batch in metric_utils.iterate_samples(opts, n)] for n in (8, 12))
    assert all(torch.equal(a, b) for a, b in zip(few, many)) and len(many) == 3
    first, second = (next(metric_utils.iterate_samples(opts, 4, stream)) for stream in ("sample", "view"))
    assert not torch.equal(first.z, second.z) and len({tuple(row) for row in first.z.tolist()}) == 4
    other = metric_utils.MetricOptions(**options(opts.G, camera_zip, detector, seed=1))
    assert not torch.equal(next(metric_utils.iterate_samples(other, 4)).z, first.z)


def test_training_goes_on_as_if_nothing_had_happened(camera_zip, detector):
    G = nets.raycond2()
    weights = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.randn(3), np.random.randn(3)
    torch.manual_seed(5)
    np.random.seed(5)
    for name in ("fid8_full", "ppl2_wend8", "kid8"):
        value(name, **options(G, camera_zip, detector))
    assert torch.equal(torch.randn(3), expected[0]) and np.array_equal(np.random.randn(3), expected[1])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in G.state_dict().items())


def test_two_processes_get_what_one_gets(camera_zip32, detector, tmp_path, one_thread):
    names = ["fid10_full", "kid10", "pr103_full", "ppl2_wend10", "eqt10_frac", "is10"]
    kwargs = options(nets.raycond3(), camera_zip32, detector)
    torch.multiprocessing.spawn(nets.worker, (f"tcp://127.0.0.1:{distributed.free_port()}", kwargs, [*names, "ranks"], str(tmp_path / "two.json")),
                                nprocs=2)
    *two, ranks = json.loads((tmp_path / "two.json").read_text())
    assert ranks == dict(digits=11_10_01_00.0, rank=0)          # rows of both ranks in turn; the result is rank 0's
    kwargs["cache"] = False                                     # else it would take the reals' statistics from the two
    for name, results in zip(names, two):
        nets.assert_same_results(results, metric_main.calc_metric(name, **kwargs).results)


def test_path_length_does_not_depend_on_the_number_of_threads(detector):
    """It divides rounding by 1e-8, so each path is computed on one thread."""
    G, threads, seen = nets.stylegan2(res=32), torch.get_num_threads(), set()
    G.synthesis.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    try:
        values = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            values.append(value("ppl2_wend6", **options(G, "", detector, labels=False)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert values[0] == values[1] == values[2] and seen == {1}


# --- the cache of real statistics

@contextlib.contextmanager
def reading(monkeypatch):
    """Counts images that are read."""
    count = []
    with monkeypatch.context() as patch:
        original = ImageFolderDataset._load_raw_image
        patch.setattr(ImageFolderDataset, "_load_raw_image", lambda self, i: count.append(i) or original(self, i))
        yield count


def test_real_statistics_are_kept(camera_zip, detector, tmp_path, monkeypatch, capsys):
    kwargs = options(nets.raycond2(), camera_zip, detector)
    first = value("fid8_full", **kwargs)
    with reading(monkeypatch) as count:
        assert value("fid8_full", **kwargs) == first and not count
    file, = (tmp_path / "cache" / "metrics").iterdir()
    file.write_bytes(file.read_bytes()[:500])
    with reading(monkeypatch) as count:
        assert value("fid8_full", **kwargs) == first and len(count) == 64
    assert "damaged cache file" in capsys.readouterr().out
    with reading(monkeypatch) as count:                         # the repaired file
        assert value("fid8_full", **kwargs) == first and not count
    # Other options, another detector: other statistics.
    other = nets.save_detector(tmp_path / "other.pt", nets.TinyDetector(4))
    for changed in (dict(kwargs, cache=False), dict(kwargs, detectors=dict(inception=other))):
        with reading(monkeypatch) as count:
            value("fid8_full", **changed)
            assert len(count) == 64


def test_data_hash_tells_data_apart(tmp_path):
    labels = camera_labels(4)
    one, same = (write_dataset(tmp_path / name, labels) for name in ("a.zip", "b.zip"))
    other = write_dataset(tmp_path / "c.zip", labels[::-1])     # the same images with other labels
    assert detectors.data_hash(data(one)) == detectors.data_hash(data(same)) != detectors.data_hash(data(other))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"1")
    before = detectors.data_hash(data(folder))
    (folder / "x.png").write_bytes(b"22")
    assert detectors.data_hash(data(folder)) != before


# --- what does not fit

def test_what_does_not_fit_is_refused(camera_zip, class_zip, camera_zip32, detector, tmp_path):
    def message(metric, G, path, labels=True):
        opts = metric_utils.MetricOptions(**options(G, path, detector, labels))
        return refusal(lambda: metric_main.check_metrics([metric], opts))

    assert "64" in message("fid50k", nets.raycond2(), camera_zip) and "50000" in message("pr50k3", nets.raycond2(), camera_zip)
    assert "3" in message("fid8", nets.raycond2(), class_zip) and "32" in message("fid8", nets.raycond2(), camera_zip32)
    small = write_dataset(tmp_path / "small.zip", camera_labels(2), size=8)
    assert "16 px or more" in message("eqr8", nets.stylegan3(res=8), small, False)
    assert "4 images or more" in message("pr33_full", nets.raycond2(), camera_zip) and "10 images" in message("is9", nets.raycond2(), camera_zip)
    assert "4 real images" in message("pr53_full", nets.stylegan2(res=8), small, False)
    assert "takes no cameras" in message("pose_error", nets.stylegan2(), camera_zip, False)
    assert "--cond=1" in message("fid_by_yaw", nets.stylegan2(3), class_zip)
    assert "no such metric" in message("fidd", nets.raycond2(), camera_zip)


# --- data that are not there

def test_what_looks_at_no_data_needs_none(detector, tmp_path):
    """A released network names data that its user does not have."""
    absent = str(tmp_path / "absent.zip")
    for make, names in [(nets.stylegan2, ["ppl2_wend8", "is10"]), (nets.stylegan3, ["ppl2_wend8", "is10", "eqt8_int", "eqt8_frac", "eqr8"])]:
        kwargs = options(make(), absent, detector, labels=False)
        metric_main.check_metrics(names, metric_utils.MetricOptions(**kwargs))
        assert all(np.isfinite(value(name, **kwargs)) for name in names)
    for G, name in [(nets.stylegan2(), "fid8_full"), (nets.raycond2(), "is10")]:
        opts = metric_utils.MetricOptions(**options(G, absent, detector, labels=G.c_dim > 0))
        assert "absent.zip" in refusal(functools.partial(metric_main.check_metrics, [name], opts))


# --- training

def test_training_prepares_and_evaluates(camera_zip, detector, tmp_path):
    G = nets.raycond2()
    kwargs = data(camera_zip, xflip=True)
    given = dict(detectors=dict(inception=detector))
    with torch.device("meta"):
        meta = nets.raycond2()
    assert metrics.prepare(["fid8_full", "kid50k_full"], kwargs, meta, **given) == ["fid8_full", "kid50k_full"]
    assert "StyleGAN3" in refusal(lambda: metrics.prepare(["fid8_full", "eqr50k"], kwargs, meta, **given))
    snapshot = str(tmp_path / "network-snapshot-000008.pkl")
    persistence.save(dict(G=None, D=None, G_ema=G, augment_pipe=None, training_set_kwargs=kwargs, camera_stats=None), snapshot)
    results = metrics.evaluate(snapshot, str(tmp_path), ["fid8_full", "kid8"], device="cpu", **given)
    record = json.loads((tmp_path / "metric-fid8_full.jsonl").read_text())
    assert record["results"] == {"fid8_full": results["fid8_full"]} and record["snapshot_pkl"] == "network-snapshot-000008.pkl"
    assert {"metric", "total_time", "total_time_str", "num_gpus", "timestamp"} <= record.keys()
    assert results["fid8_full"] == value("fid8_full", **options(G, camera_zip, detector))
