"""Metrics of tiny networks: names, checks, draws, processes, caches."""

import contextlib
import functools
import json

import metric_helpers as nets
import numpy as np
import pytest
import torch
from conftest import camera_labels, write_dataset
from dataset_helpers import refusal

import legacy
import metrics
from metrics import detectors, metric_main, metric_utils
from torch_utils import distributed, persistence
from training.dataset import ImageFolderDataset

STYLEGAN3 = {"eqt8_int", "eqt8_frac", "eqr8"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return nets.save_detector(tmp_path_factory.mktemp("detectors") / "tiny.pt")


def data(path, labels=True, **kwargs):
    return dict(class_name="training.dataset.ImageFolderDataset", path=str(path), use_labels=labels, **kwargs)


def options(G, path, detector, labels=True, **kwargs):
    return dict(G=G, dataset_kwargs=data(path, labels), detectors=dict(inception=detector, vgg16=detector), device="cpu", progress=False, **kwargs)


def value(name, **kwargs):
    results = metric_main.calc_metric(name, **kwargs).results
    return next(value for value in results.values() if not isinstance(value, str))


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


def test_registering_a_metric(monkeypatch):
    monkeypatch.setattr(metric_main, "_metrics", dict(metric_main.metrics()))

    @metric_main.register_metric
    def answer(opts):
        return {"answer": 42, "why": "text is let through"}

    result = metric_main.calc_metric("answer", device="cpu")
    assert result.results == {"answer": 42, "why": "text is let through"} and result.metric == "answer" and result.num_gpus == 1


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
        assert 5 < results[name] < 200, results
        assert ("rays" in results) == labels and (not labels or results["rays"].startswith(G.rays))
    assert torch.equal(G.synthesis.input.transform, before)
    assert value("ppl2_wend8", **kwargs) > 0 and value("fid8_full", **kwargs) > 0


def test_equivariance_moves_the_camera(detector, camera_zip32, monkeypatch):
    """A generator that shows nothing but its rays is equivariant if its camera moves along, and not at all if it stays."""
    G = nets.raycond3()
    kwargs = options(G, camera_zip32, detector)

    def synthesis(ws, c, **_):
        from camera_utils import ray_map
        return ray_map(c, 32, 32)[:, :3]
    monkeypatch.setattr(G.synthesis, "forward", synthesis)
    moved = [value(name, **kwargs) for name in sorted(STYLEGAN3)]
    G.rays = "published"
    fixed = [value(name, **kwargs) for name in sorted(STYLEGAN3)]
    assert all(a > 80 and b < 45 for a, b in zip(moved, fixed)), (moved, fixed)


def test_path_length_gives_the_camera(detector, camera_zip, monkeypatch):
    G = nets.raycond2()
    seen = []
    forward = type(G.synthesis).forward
    monkeypatch.setattr(type(G.synthesis), "forward", lambda self, ws, c, **kw: seen.append(c) or forward(self, ws, c, **kw))
    value("ppl2_wend4", **options(G, camera_zip, detector))
    labels = {tuple(label) for label in map(list, camera_rows(camera_zip))}
    assert len(seen) == 1 and len(seen[0]) == 8 and torch.equal(seen[0][:4], seen[0][4:])
    assert {tuple(row) for row in seen[0].tolist()} <= labels


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


def test_feature_stats_stop_when_full():
    stats = metric_utils.FeatureStats(capture_all=True, max_items=3)
    stats.append(np.ones([2, 4]))
    stats.append(np.ones([2, 4]))
    assert stats.is_full() and stats.get_all().shape == (3, 4)


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


def test_two_processes_get_what_one_gets(camera_zip32, detector, tmp_path):
    names = ["fid10_full", "kid10", "pr103_full", "ppl2_wend10", "eqt10_frac", "is10"]
    kwargs = options(nets.raycond3(), camera_zip32, detector)
    torch.multiprocessing.spawn(nets.worker, (f"tcp://127.0.0.1:{distributed.free_port()}", kwargs, names, str(tmp_path / "two.json")), nprocs=2)
    two = json.loads((tmp_path / "two.json").read_text())
    kwargs["cache"] = False                                     # else it would take the reals' statistics from the two
    for name, results in zip(names, two):
        one = metric_main.calc_metric(name, **kwargs).results
        assert results.pop("rays", None) == one.pop("rays", None)
        assert results == pytest.approx(dict(one), rel=1e-6, abs=1e-9), name


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


# --- detectors

class NoKeywords(torch.nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img.mean(dim=[2, 3])


class Maps(nets.TinyDetector):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.conv(img)


class NaNs(nets.TinyDetector):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.mean(dim=[2, 3]) * float("nan")


class Logits(nets.TinyDetector):
    def forward(self, img: torch.Tensor, no_output_bias: bool = False) -> torch.Tensor:
        return img.mean(dim=[2, 3])


@pytest.mark.parametrize("module, metric, says", [
    (NoKeywords, "fid50k_full", "return_features"), (Maps, "fid50k_full", "expected [2, D]"), (NaNs, "fid50k_full", "not finite"),
    (Logits, "is50k", "no probabilities"), (Logits, "ppl2_wend", "return_lpips"),
])
def test_wrong_detectors_are_refused(module, metric, says, tmp_path, camera_zip):
    path = nets.save_detector(tmp_path / "wrong.pt", module())
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, path))
    message = refusal(lambda: metric_main.check_metrics([metric], opts))
    assert says in message and "wrong.pt" in message and metric in message


def test_files_that_are_no_detectors_are_refused(tmp_path, camera_zip):
    def message(name, content):
        (tmp_path / name).write_bytes(content)
        opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, str(tmp_path / name)))
        return refusal(lambda: metric_main.check_metrics(["fid50k_full"], opts))

    bomb = b"\x80\x03cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    assert "pickle" in message("inception.pkl", bomb) and "pickle" in message("inception.pt", bomb) and not (tmp_path / "ran").exists()
    assert "not a TorchScript file" in message("text.pt", b"hello") and "not a TorchScript file" in message("empty.pt", b"")
    opts = metric_utils.MetricOptions(**options(nets.raycond2(), camera_zip, str(tmp_path / "absent.pt")))
    assert "no such file" in refusal(lambda: metric_main.check_metrics(["fid50k_full"], opts))


def test_detectors_in_the_cache(camera_zip, detector, tmp_path, monkeypatch):
    def no_network(url, **_):
        raise detectors.UserError(f"cannot download {url}")
    monkeypatch.setattr(detectors, "open_url", no_network)
    kwargs = dict(options(nets.raycond2(), camera_zip, detector), detectors={})
    opts = metric_utils.MetricOptions(**kwargs)
    place = tmp_path / "cache" / "detectors" / "inception-2015-12-05.pt"
    for fetch in (False, True):
        message = refusal(functools.partial(metric_main.check_metrics, ["fid8_full"], opts, fetch=fetch))
        assert str(place) in message and "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt" in message
    nets.save_detector(place)                                   # fetched by hand
    metric_main.check_metrics(["fid8_full"], opts)
    record = place.with_name(place.name + ".sha256")
    assert record.read_text().split()[0] == detectors.sha256_of(str(place))
    nets.save_detector(place, nets.TinyDetector(5))
    assert "has changed" in refusal(lambda: metric_main.check_metrics(["fid8_full"], opts))
    assert "has changed" in refusal(lambda: detectors.prepare("inception", {}))


def test_fetching_records_the_hash(tmp_path, detector, monkeypatch):
    monkeypatch.setattr(detectors, "open_url", lambda url, **_: open(detector, "rb"))
    path = detectors.prepare("vgg16", {})
    assert (tmp_path / "cache" / "detectors" / "vgg16.pt.sha256").read_text().split()[0] == detectors.sha256_of(detector) == detectors.sha256_of(path)


def test_files_without_a_kind(tmp_path, detector):
    plain = nets.save_detector(tmp_path / "mine.pt")
    named = nets.save_detector(tmp_path / "my-inception.pt")
    wrong = nets.save_detector(tmp_path / "wrong.pt", NoKeywords())
    assert detectors.find("inception", "features", {}, (plain,)) == plain
    assert detectors.find("inception", "features", {}, (plain, named)) == named
    assert detectors.find("vgg16", "lpips", {}, (wrong, named, plain)) == plain
    assert "vgg16" in refusal(lambda: detectors.find("vgg16", "lpips", {}, (named,)))
    assert "return_lpips" in refusal(lambda: detectors.find("vgg16", "lpips", {}, (wrong,)))


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
    assert "no such metric" in message("fidd", nets.raycond2(), camera_zip)


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
    results = metrics.evaluate(snapshot, str(tmp_path), ["fid8_full", "kid8"], load_network=legacy.load_network_pkl, device="cpu", **given)
    record = json.loads((tmp_path / "metric-fid8_full.jsonl").read_text())
    assert record["results"] == {"fid8_full": results["fid8_full"]} and record["snapshot_pkl"] == "network-snapshot-000008.pkl"
    assert {"metric", "total_time", "total_time_str", "num_gpus", "timestamp"} <= record.keys()
    assert results["fid8_full"] == value("fid8_full", **options(G, camera_zip, detector))
