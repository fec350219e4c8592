"""calc_metrics.py as its users run it."""

import json

import metric_helpers as nets
import pytest
from click.testing import CliRunner
from conftest import camera_labels, write_dataset
from PIL import Image

import calc_metrics
import legacy
import metrics
from metrics.plots import read_curves
from torch_utils import persistence


def run(*args):
    """(exit code, stdout), as one process."""
    result = CliRunner().invoke(calc_metrics.main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


def refused(*args, says):
    """The command ends with one line that holds all of `says`."""
    result = CliRunner().invoke(calc_metrics.main, [str(arg) for arg in args])
    message = result.stderr[result.stderr.index("Error:"):].strip()
    assert result.exit_code != 0 and "\n" not in message, result.stderr
    for part in says:
        assert part in message, message


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return nets.save_detector(tmp_path_factory.mktemp("detectors") / "tiny.pt")


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
    code, output = run(f"--network={run_dir}", "--metrics=fid50k_full,pr50k3_full", "--samples=12", f"--detector={detector}", "--device=cpu", "--plot")
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
def test_training_gets_the_same_number(name, run_dir, detector, camera_zip):
    snapshot = run_dir / "network-snapshot-000012.pkl"
    trained = metrics.evaluate(str(snapshot), str(run_dir), [name], load_network=legacy.load_network_pkl, device="cpu", detectors=dict(inception=detector))
    for data in ([], [f"--data={camera_zip}"]):
        code, _ = run(f"--network={snapshot}", f"--metrics={name}", f"--detector=inception={detector}", "--device=cpu", *data)
        assert code == 0 and records(run_dir, name)[-1]["results"] == trained
    assert len(records(run_dir, name)) == 3


def test_a_folder_of_images(tmp_path, camera_zip, detector):
    other = write_dataset(tmp_path / "other.zip", camera_labels(20), size=16)
    code, output = run(f"--images={other}", f"--data={camera_zip}", "--metrics=fid20_full,kid20,pr203,is20", f"--detector={detector}", "--device=cpu")
    assert code == 0 and "fid20_full" in output and "is20_mean" in output and "other.zip" in output
    refused(f"--images={other}", f"--data={camera_zip}", "--metrics=fid21_full", f"--detector={detector}", says=["fid21_full", "20", "21", "--samples=20"])
    refused(f"--images={other}", f"--data={camera_zip}", "--metrics=ppl2_wend", f"--detector={detector}", says=["needs a generator"])
    refused(f"--images={other}", "--metrics=fid20_full", f"--detector={detector}", says=["--data"])
    same, output = run(f"--images={camera_zip}", f"--data={camera_zip}", "--metrics=fid64_full", f"--detector={detector}", "--device=cpu")
    assert same == 0 and json.loads(next(line for line in output.splitlines() if line.startswith("{")))["results"]["fid64_full"] < 1e-6


def test_mistakes_are_one_line(run_dir, detector, tmp_path, camera_zip, monkeypatch):
    from metrics import detectors

    def no_network(url, **_):
        raise detectors.UserError(f"cannot download {url}")
    monkeypatch.setattr(detectors, "open_url", no_network)
    network = f"--network={run_dir / 'network-snapshot-000004.pkl'}"
    given = f"--detector={detector}"
    refused("--metrics=fid50k", says=["--network"])
    refused(network, says=["--metrics"])
    refused(network, "--metrics=fid50k_ful", given, says=["did you mean fid50k_full"])
    refused(network, "--metrics=fid50k", given, says=["50000", "128"])
    refused(network, "--metrics=eqt50k_int", says=["eqt50k_int", "StyleGAN3", "raycond2"])
    refused(network, "--metrics=fid50k_full", says=["inception-2015-12-05.pt", "--detector", str(tmp_path / "cache")])
    refused(network, "--metrics=fid50k_full", "--detector=absent.pt", says=["absent.pt", "no such file"])
    refused(network, "--metrics=fid50k_full", f"--detector={run_dir / 'network-snapshot-000004.pkl'}", says=["pickle"])
    refused(network, "--metrics=fid8_full", given, "--data=absent.zip", says=["absent.zip"])
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
    monkeypatch.setattr(detectors, "open_url", fetch)
    code, output = run("prepare", "--metrics=fid50k_full,ppl2_wend,eqr50k")
    assert code == 0 and detectors.sha256_of(detector) in output
    assert [url.rpartition("/")[2] for url in asked] == ["inception-2015-12-05.pt", "vgg16.pt"]
    code, output = run(f"--network={run_dir / 'network-snapshot-000004.pkl'}", "--metrics=fid8_full,ppl2_wend8", "--device=cpu")
    assert code == 0 and len(asked) == 2 and "ppl2_wend8" in output
