"""calc_metrics.py as its users run it."""

import functools
import json
from pathlib import Path

import metric_helpers as nets
import pytest
from click.testing import CliRunner
from conftest import camera_labels, write_dataset
from helpers import assert_refused
from PIL import Image

import calc_metrics
import metrics
from dnnlib import UserError
from metrics.results import read_curves, report_metric
from torch_utils import persistence

pytestmark = pytest.mark.usefixtures("own_cache")


def run(*args):
    """(exit code, stdout), as one process."""
    result = CliRunner().invoke(calc_metrics.main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


refused = functools.partial(assert_refused, calc_metrics.main)


def both(detector):
    return [f"--detector={kind}={detector}" for kind in ("inception", "vgg16")]


def write_network(path, G, kwargs):
    persistence.save(dict(G=None, D=None, G_ema=G, augment_pipe=None, training_set_kwargs=kwargs, camera_stats=None), str(path))


@pytest.fixture
def run_dir(tmp_path, camera_zip):
    """A run with two snapshots."""
    folder = tmp_path / "00000-run"
    folder.mkdir()
    (folder / "training_options.json").write_text("{}")
    kwargs = dict(class_name="training.dataset.ImageFolderDataset", path=camera_zip, use_labels=True, xflip=True, max_size=64, resolution=16, num_channels=3)
    for kimg in (4, 12):
        G = nets.raycond2()
        G.synthesis.b16.torgb.bias += kimg
        write_network(folder / f"network-snapshot-{kimg:06d}.pkl", G, kwargs)
    return folder


def records(folder, name):
    return [json.loads(line) for line in (folder / f"metric-{name}.jsonl").read_text().splitlines()]


def test_all_snapshots_of_a_run(run_dir, detector):
    code, output = run(f"--network={run_dir}", "--metrics=fid50k_full,pr50k3_full", "--samples=12", *both(detector), "--device=cpu", "--plot")
    assert code == 0, output
    for name in ("fid12_full", "pr123_full_precision", "pr123_full_recall", "network-snapshot-000004.pkl", "metrics.png"):
        assert name in output
    first, second = records(run_dir, "fid12_full")
    assert [first["snapshot_pkl"], second["snapshot_pkl"]] == ["network-snapshot-000004.pkl", "network-snapshot-000012.pkl"]
    assert first["results"]["fid12_full"] != second["results"]["fid12_full"]
    assert {"results", "metric", "total_time", "total_time_str", "num_gpus", "snapshot_pkl", "timestamp"} == first.keys()
    curves = read_curves(str(run_dir))
    assert curves["fid12_full"]["fid12_full"] == [(4, first["results"]["fid12_full"]), (12, second["results"]["fid12_full"])]
    assert set(curves["pr123_full"]) == {"pr123_full_precision", "pr123_full_recall"}
    with Image.open(run_dir / "metrics.png") as image:
        assert min(image.size) > 200


@pytest.mark.parametrize("name", ["fid8_full", "fid8"])
def test_training_gets_the_same_number(name, run_dir, detector, camera_zip, tmp_path):
    snapshot = run_dir / "network-snapshot-000012.pkl"
    trained = metrics.evaluate(str(snapshot), str(run_dir), [name], device="cpu", detectors=dict(inception=detector))
    for data in ([], [f"--data={camera_zip}"]):
        code, _ = run(f"--network={snapshot}", f"--metrics={name}", f"--detector=inception={detector}", "--device=cpu", *data)
        assert code == 0 and records(run_dir, name)[-1]["results"] == trained
    assert len(records(run_dir, name)) == 3
    if name == "fid8_full":                                     # the features of the real images are those of either route
        assert len(list((tmp_path / "cache" / "metrics").iterdir())) == 1


def test_a_folder_of_images(tmp_path, camera_zip, detector):
    other = write_dataset(tmp_path / "other.zip", camera_labels(20), size=16)
    code, output = run(f"--images={other}", f"--data={camera_zip}", "--metrics=fid20_full,kid20,pr203,is20", *both(detector), "--device=cpu")
    assert code == 0 and "fid20_full" in output and "is20_mean" in output and "other.zip" in output and "Not kept in a file" in output
    refused(f"--images={other}", f"--data={camera_zip}", "--metrics=fid21_full", f"--detector={detector}",
            says=["fid21_full", f"--images={other}", "20", "21", "--samples=20"])
    refused("--images=nope.zip", f"--data={camera_zip}", "--metrics=fid8_full", f"--detector={detector}", says=["--images=nope.zip"])
    refused(f"--images={other}", f"--data={camera_zip}", "--metrics=ppl2_wend", f"--detector={detector}", says=["needs a generator"])
    refused(f"--images={other}", "--metrics=fid20_full", f"--detector={detector}", says=["--data"])
    same, output = run(f"--images={camera_zip}", f"--data={camera_zip}", "--metrics=fid64_full", f"--detector={detector}", "--device=cpu")
    assert same == 0 and json.loads(next(line for line in output.splitlines() if line.startswith("{")))["results"]["fid64_full"] < 1e-6


@pytest.mark.parametrize("network, metrics", [("stylegan3r", "eqt16_int,is16"), ("stylegan2", "ppl2_wend16,is16")])
def test_released_networks_whose_data_are_not_here(network, metrics, detector):
    path = Path(__file__).parent / "data" / "pickles" / f"{network}.pkl"
    given = both(detector) + ["--device=cpu", f"--network={path}"]
    code, output = run(*given, f"--metrics={metrics}")
    assert code == 0 and all(name in output for name in metrics.split(",")) and "Not kept in a file" in output, output
    refused(*given, "--metrics=fid16_full", says=["no such file", "trained on", "--data=ZIP"])


def test_without_metrics_it_computes_fid50k_full(run_dir, detector):
    network = run_dir / "network-snapshot-000004.pkl"
    code, output = run(f"--network={network}", "--samples=8", f"--detector={detector}", "--device=cpu")
    assert code == 0 and records(run_dir, "fid8_full")
    code, output = run(f"--network={run_dir}", "--plot")         # draws what is there
    assert code == 0 and "Drew" in output and len(records(run_dir, "fid8_full")) == 1


def test_words_come_once_below_the_numbers():
    rows = [(f"{i}.pkl", {"eqr8": 20.123456 + i, "eqr8_rays": "as they are", **({"eqr8_note": "diverged"} if i else {})}) for i in range(2)]
    assert calc_metrics.table(rows).splitlines() == [
        "", "eqr8  20.123  0.pkl", "eqr8  21.123  1.pkl", "", "eqr8_rays: as they are", "eqr8_note: diverged (1.pkl)"]


def test_prepare_looks_at_the_data_before_it_trains(tmp_path, camera_zip, class_zip, monkeypatch):
    monkeypatch.setattr("metrics.detectors.pose_regressor.train_pose_regressor", lambda *_: pytest.fail("trained"))
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    for metric in ("pose_error", "view_consistency"):
        refused("prepare", f"--metrics={metric}", f"--data={camera_zip}", "--device=cpu", says=[camera_zip, "names no scenes"])
        refused("prepare", f"--metrics={metric}", f"--data={class_zip}", "--device=cpu", says=[class_zip])
        refused("prepare", f"--metrics={metric}", "--data=absent.zip", "--device=cpu", says=["--data=absent.zip", "no such file"])
        refused("prepare", f"--metrics={metric}", f"--data={tmp_path / 'bad.zip'}", "--device=cpu", says=["--data=", "bad.zip", "zip"])
        refused("prepare", f"--metrics={metric}", "--device=cpu", says=["--data=ZIP"])


def test_curves_of_camera_metrics(tmp_path):
    """Both files hold both numbers; each is drawn once, angles apart from similarities."""
    for kimg in (4, 12):
        results = {"pose_error1k": 20.0 - kimg, "pose_error1k_chance": 24.0, "view_consistency1k": 0.1 + kimg / 100, "view_consistency1k_ratio": 0.5}
        for name in ("pose_error1k", "view_consistency1k"):
            report_metric(dict(results=results, metric=name), str(tmp_path), str(tmp_path / f"network-snapshot-{kimg:06d}.pkl"))
    assert read_curves(str(tmp_path)) == {
        "pose_error1k": {"pose_error1k": [(4, 16.0), (12, 8.0)], "pose_error1k_chance": [(4, 24.0), (12, 24.0)]},
        "view_consistency1k": {"view_consistency1k": [(4, 0.14), (12, 0.22)], "view_consistency1k_ratio": [(4, 0.5), (12, 0.5)]}}


def test_mistakes_are_one_line(run_dir, detector, tmp_path, camera_zip, monkeypatch):
    from metrics import detectors

    def no_network(url, **_):
        raise UserError(f"cannot download {url}")
    monkeypatch.setattr(detectors.files, "open_url", no_network)
    network = f"--network={run_dir / 'network-snapshot-000004.pkl'}"
    given = f"--detector={detector}"
    refused("--metrics=fid50k", says=["--network"])
    refused(network, says=["--metrics=fid50k_full", "inception-2015-12-05.pt", "--detector"])         # the default
    refused(network, "--metrics=fid50k_ful", given, says=["did you mean fid50k_full"])
    refused(network, "--metrics=fid50k", given, says=["50000", "128"])
    refused(network, "--metrics=eqt50k_int", says=["eqt50k_int", "StyleGAN3", "raycond2"])
    refused(network, "--metrics=fid50k_full", says=["inception-2015-12-05.pt", "--detector", str(tmp_path / "cache")])
    refused(network, "--metrics=fid50k_full", "--detector=absent.pt", says=["absent.pt", "no such file"])
    refused(network, "--metrics=fid50k_full", f"--detector={run_dir / 'network-snapshot-000004.pkl'}", says=["pickle"])
    refused(network, "--metrics=fid8_full", given, "--data=absent.zip", says=["--data=absent.zip"])
    refused(network, "--metrics=fid8_full", "--detector=inceptoin=/x.pt", says=["inceptoin", "did you mean inception?"])
    refused(network, "--metrics=fid8_full,pr83_full", given, says=["--detector=inception=FILE", "--detector=vgg16=FILE"])
    bare = write_dataset(tmp_path / "bare.zip", [None] * 20)
    message = refused(network, "--metrics=fid8_full", given, f"--data={bare}", says=["bare.zip", "the network takes labels"])
    assert "--cond" not in message
    refused(f"--network={tmp_path}", "--metrics=fid8", says=["network-snapshot-*.pkl"])
    refused("--network=absent.pkl", "--metrics=fid8", says=["absent.pkl"])
    refused(network, f"--images={camera_zip}", "--metrics=fid8", says=["excludes"])
    refused("--metrics=fid8", "prepare", says=["behind"])
    refused("prepare", "--metrics=fid50k_full", says=["inception-2015-12-05.pt", "cannot fetch", str(tmp_path / "cache")])
    refused("prepare", "--metrics=fid5k_fll", says=["did you mean"])
    assert not list(run_dir.glob("metric-*"))


def test_prepare_fetches_into_the_cache(tmp_path, detector, monkeypatch, run_dir):
    from metrics import detectors
    asked = []

    def fetch(url, **_):
        asked.append(url)
        return open(detector, "rb")
    monkeypatch.setattr(detectors.files, "open_url", fetch)
    code, output = run("prepare", "--metrics=fid50k_full,ppl2_wend,eqr50k")
    assert code == 0 and detectors.sha256_of(detector) in output
    assert [url.rpartition("/")[2] for url in asked] == ["inception-2015-12-05.pt", "vgg16.pt"]
    code, output = run(f"--network={run_dir / 'network-snapshot-000004.pkl'}", "--metrics=fid8_full,ppl2_wend8", "--device=cpu")
    assert code == 0 and len(asked) == 2 and "ppl2_wend8" in output


def test_a_sheet_among_the_images_and_a_tilde(tmp_path, camera_zip, detector, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out").mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (20 * i, 0, 9)).save(tmp_path / "out" / f"seed{i:04d}.png")
    options = ["--metrics=fid8_full", "--images=~/out\r", f"--data={camera_zip}", "--device=cpu", f"--detector=inception={detector}"]
    (tmp_path / "tiny.pt").write_bytes(Path(detector).read_bytes())
    code, before = run(*options)
    assert code == 0, before
    Image.new("RGB", (64, 64)).save(tmp_path / "out" / "grid.png")
    code, after = run(*options[:-1], "--detector=inception=~/tiny.pt")
    assert code == 0 and numbers(after) == numbers(before)
    assert "is a sheet" not in before and after.count("grid.png is a sheet that a command wrote") == 1


def numbers(output):
    return [line.split()[:2] for line in output.splitlines() if line.startswith("fid")]
