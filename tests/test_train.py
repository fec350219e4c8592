"""train.py as its users run it."""

import functools
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import SMALL, camera_labels, write_dataset
from helpers import assert_refused, options_of, run_train
from metric_helpers import save_detector
from PIL import Image

import calc_metrics
import legacy
import train
from dnnlib import UserError
from torch_utils import persistence
from training import networks_raycond2
from training.presets import RECIPES
from training.run import state as training_state
from training.run.config import Options, apply_recipe, choose_gpus, preset_of
from training.run.folder import next_run_dir
from training.run.status import read_stats

ROOT = Path(__file__).parent.parent


refused = functools.partial(assert_refused, train.main)


# ---------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(tmp_path_factory, camera_zip):
    """A run of two ticks, started as a command in a new process; its folder and output."""
    outdir = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(ROOT / "train.py"), f"--outdir={outdir}", f"--data={camera_zip}", "--cfg=raycond2", "--mirror=1", "--kimg=0.048",
               "--tick=0.016", "--snap=1", "--dcond=both", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=outdir)
    assert done.returncode == 0, done.stdout + done.stderr
    folder, = outdir.iterdir()
    return folder, done.stdout


def test_run_folder(finished):
    folder, output = finished
    assert folder.name == "00000-raycond2-cameras-gpus1-batch8-gamma0.0064"
    names = {p.name for p in folder.iterdir()}
    assert {"training_options.json", "log.txt", "stats.jsonl", "curves.png", "reals.png", "fakes_init.png", "views_init.png", "fakes000000.png",
            "views000000.png", "network-snapshot-000000.pkl"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if "part" in name]
    for text in ("tick 0     kimg 0.0", "sec/kimg", "Training on the CPU", "--gamma=auto", "--cond=1 is implied"):
        assert text in output and text in (folder / "log.txt").read_text()


def test_statistics(finished):
    records = read_stats(str(finished[0]))
    assert len(records) >= 3 and records[-1]["Progress/kimg"]["mean"] == pytest.approx(0.048)
    for name in ("Loss/G/loss", "Loss/D/loss", "Loss/scores/real", "Loss/r1_penalty", "Loss/pl_penalty", "Timing/sec_per_kimg"):
        assert np.isfinite(records[0][name]["mean"])


def test_pictures_show_the_networks_images(finished):
    folder, _ = finished
    views = np.asarray(Image.open(folder / "views000000.png"))
    G = legacy.load_network_pkl(folder / "network-snapshot-000000.pkl")["G_ema"]
    assert views.shape[1] == 7 * G.img_resolution and views.std() > 0
    left, right = views[:16, :16].astype(float), views[:16, -16:].astype(float)
    assert np.abs(left - right).max() > 0                       # the columns differ in the camera


def test_snapshot_opens_like_the_readme_says(finished):
    folder, _ = finished
    with open(folder / "network-snapshot-000000.pkl", "rb") as f:
        data = pickle.load(f)
    G = data["G_ema"]
    assert not G.training and not any(p.requires_grad for p in G.parameters())
    c = torch.tensor(data["camera_stats"]["examples"][:1])
    assert G(torch.randn([1, G.z_dim]), c).shape == (1, 3, 16, 16)
    assert G.init_kwargs["rays"] == "pinhole" and data["D"].init_kwargs["dcond"] == "both"
    low, high = data["camera_stats"]["yaw_range"]
    assert -0.7 <= low < 0 < high <= 0.7
    assert data["camera_stats"]["radius"] == pytest.approx(2.7, abs=1e-3)


def test_options_alone_rebuild_the_run(finished, tmp_path):
    """The stored JSON document, with another folder, gives the same weights."""
    folder, _ = finished
    config = json.loads((folder / "training_options.json").read_text())
    config["run_dir"] = str(tmp_path)
    from training.training_loop import training_loop
    threads = torch.get_num_threads()
    assert training_loop(config) == 0
    torch.set_num_threads(threads)
    a, b = (legacy.load_network_pkl(path)["G_ema"].state_dict() for path in (tmp_path / "network-snapshot-000000.pkl", folder / "network-snapshot-000000.pkl"))
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-4), name


def test_resume_says_what_it_took(finished, camera_zip, tmp_path):
    folder, _ = finished
    snapshot = folder / "network-snapshot-000000.pkl"
    code, output = run_train("--outdir", tmp_path, "--data", camera_zip, "--cfg=raycond2", "--kimg=0.008", "--resume", snapshot, *SMALL)
    assert code == 0, output
    assert f"Starting from {snapshot}" in output and "copied" in output
    options = json.loads(next(tmp_path.iterdir()).joinpath("training_options.json").read_text())
    assert options["ema_rampup"] is None and options["G_kwargs"]["rays"] == "pinhole"


def save_small(path, **names):
    """A file with the networks that SMALL describes, in the published convention."""
    shape = dict(img_resolution=16, img_channels=3, channel_base=128, channel_max=16)
    G = networks_raycond2.Generator(z_dim=512, c_dim=25, w_dim=512, mapping_kwargs=dict(num_layers=2), rays="published", **shape)
    made = dict(G=G, G_ema=G, D=networks_raycond2.Discriminator(c_dim=25, **shape))
    persistence.save({name: made[name] for name in names}, path)
    return path


def test_a_resumed_network_keeps_its_rays(camera_zip, tmp_path):
    published = save_small(tmp_path / "published.pkl", G=True, G_ema=True, D=True)
    args = ["--outdir", tmp_path, "--data", camera_zip, "--cfg=raycond2", "--resume", published, "-n", *SMALL]
    code, output = run_train(*args)
    assert code == 0 and options_of(output)["G_kwargs"]["rays"] == "published" and "which is kept" in output
    code, output = run_train(*args, "--rays=pinhole")
    assert code == 0 and options_of(output)["G_kwargs"]["rays"] == "pinhole" and "Warning" in output


def test_resume_says_what_the_file_lacks(camera_zip, tmp_path):
    args = ["--outdir", tmp_path / "runs", "--data", camera_zip, "--cfg=raycond2", "-n", *SMALL]
    code, output = run_train(*args, "--resume", save_small(tmp_path / "ema.pkl", G_ema=True))
    assert code == 0 and "has no G: it starts from G_ema" in output and "has no D: it starts fresh" in output
    refused(*args, "--resume", save_small(tmp_path / "d.pkl", D=True), says=["d.pkl", "no generator"])


def test_metrics_at_snapshots(camera_zip, tmp_path, monkeypatch):
    """The number at a snapshot is calc_metrics.py's; what a metric lacks is said before there is a folder."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    detector = save_detector(tmp_path / "tiny.pt")
    base = [f"--data={camera_zip}", "--cfg=raycond2", "--kimg=0.008", "--tick=0.008", "--snap=1", *SMALL]
    for metric, says in [("fid8_fll", ["did you mean fid50k_full"]), ("eqr50k", ["eqr50k", "StyleGAN3"]), ("fid65", ["65", "64", "--samples"])]:
        refused(f"--outdir={tmp_path / 'none'}", *base, f"--metrics={metric}", f"--detector={detector}", says=says)
    monkeypatch.setattr("metrics.detectors.files.open_url", offline)
    refused(f"--outdir={tmp_path / 'none'}", *base, "--metrics=fid8_full", says=["inception-2015-12-05.pt", "--detector", str(tmp_path / "cache")])
    assert not (tmp_path / "none").exists()

    code, output = run_train(f"--outdir={tmp_path / 'runs'}", *base, "--metrics=fid50k_full", "--samples=8", f"--detector={detector}")
    assert code == 0, output
    folder, = (tmp_path / "runs").iterdir()
    trained = [json.loads(line) for line in (folder / "metric-fid8_full.jsonl").read_text().splitlines()]
    assert trained[-1]["snapshot_pkl"] == "network-snapshot-000000.pkl" and trained[-1]["results"]["fid8_full"] > 0
    again = [f"--network={folder / 'network-snapshot-000000.pkl'}", "--metrics=fid8_full", f"--detector={detector}", "--device=cpu"]
    result = CliRunner().invoke(calc_metrics.main, again)
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "metric-fid8_full.jsonl").read_text().splitlines()[-1])["results"] == trained[-1]["results"]


def cached_detector(folder):
    """Puts a small detector where the published one of FID belongs in that cache; its path."""
    path = folder / "detectors" / "inception-2015-12-05.pt"
    path.parent.mkdir(parents=True)
    return Path(save_detector(path))


@pytest.mark.usefixtures("own_cache")
def test_the_default_metric_where_its_detector_is_at_hand(camera_zip, tmp_path, monkeypatch):
    """fid50k_full as StyleGAN3 has it; without a detector a line, and neither a download nor the end of a run."""
    monkeypatch.setattr("metrics.detectors.files.open_url", lambda *_, **__: pytest.fail("asked the network"))
    base = [f"--outdir={tmp_path / 'runs'}", f"--data={camera_zip}", "--cfg=raycond2", *SMALL]
    code, output = run_train(*base, "-n")
    said, = [line for line in output.splitlines() if "fid50k_full" in line]
    assert code == 0 and options_of(output)["metrics"] == []
    for part in ["skipped", "no inception detector", "calc_metrics.py prepare", "--detector=inception=FILE", str(tmp_path / "cache")]:
        assert part in said
    given = save_detector(tmp_path / "tiny.pt")
    for option in (f"--detector={given}", f"--detector=inception={given}"):
        code, output = run_train(*base, option, "-n")
        assert code == 0 and options_of(output)["metrics"] == ["fid50k_full"] and "--metrics=fid50k_full is the default" in output
    refused(*base, "--detector=absent.pt", says=["absent.pt", "no such file"])

    path = cached_detector(tmp_path / "cache")
    code, output = run_train(*base, "-n", "--samples=12")
    assert code == 0 and options_of(output)["metrics"] == ["fid12_full"]
    for value in ("none", ""):
        code, output = run_train(*base, "-n", f"--metrics={value}")
        assert code == 0 and options_of(output)["metrics"] == [] and "fid50k" not in output
    path.write_bytes(path.read_bytes()[:2000])                  # not the file that was first seen
    code, output = run_train(*base, "-n")
    assert code == 0 and options_of(output)["metrics"] == [] and "skipped" in output and str(path) in output
    code, output = run_train(*base, "--cfg=raycond2-tiny", "-n")
    assert code == 0 and options_of(output)["metrics"] == [] and "a small preset: without --aug there is no augmentation, without --metrics no metric" in output


@pytest.mark.usefixtures("own_cache")
def test_the_default_metric_is_computed_at_snapshots(camera_zip, tmp_path):
    cached_detector(tmp_path / "cache")
    code, output = run_train(f"--outdir={tmp_path / 'runs'}", f"--data={camera_zip}", "--cfg=raycond2", "--kimg=0.008", "--tick=0.008", "--samples=8", *SMALL)
    assert code == 0, output
    folder, = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "metric-fid8_full.jsonl").read_text().splitlines()[-1])["results"]["fid8_full"] > 0


def offline(url, **_):
    raise UserError(f"cannot download {url}")


@pytest.mark.parametrize("cfg, sizes", [
    ("raycond2", ["--batch=2", "--batch-gpu=1", "--mbstd-group=1"]), ("stylegan2", ["--batch=1", "--mbstd-group=1"]),
    pytest.param("raycond2", ["--batch=6", "--batch-gpu=3", "--mbstd-group=3"], marks=pytest.mark.slow),
    pytest.param("stylegan3-t", ["--batch=2", "--batch-gpu=1", "--mbstd-group=1"], marks=pytest.mark.slow)])
def test_batches_of_any_legal_size_train(cfg, sizes, camera_zip, tmp_path):
    """Down to one image per pass, of which path length regularisation takes that one."""
    code, output = run_train(f"--outdir={tmp_path}", f"--data={camera_zip}", f"--cfg={cfg}", "--kimg=0.006", "--gamma=1", *SMALL, *sizes)
    assert code == 0, output
    folder, = tmp_path.iterdir()
    losses = [value["mean"] for record in read_stats(str(folder)) for name, value in record.items() if name.startswith("Loss/")]
    assert np.isfinite(losses).all() and len(losses) > 5
    assert ("Loss/pl_penalty" in read_stats(str(folder))[0]) == (cfg != "stylegan3-t")


def test_snapshots_within_one_kimg_have_names_of_their_own(finished):
    """The first is called as ever; names sort in the order of training, and everything that looks for snapshots
    finds them.
    """
    folder, _ = finished
    numbers = ["000000", "000000_024", "000000_040", "000000_048"]
    for kind, end in [("network-snapshot-", ".pkl"), ("fakes", ".png"), ("views", ".png")]:
        assert [path.name for path in sorted(folder.glob(f"{kind}0*"))] == [f"{kind}{number}{end}" for number in numbers]
    assert [Path(path).name for path in training_state.states_of(str(folder))] == [f"training-state-{number}.pt" for number in numbers[:1:-1]]
    assert [Path(path).name for path in calc_metrics.find_snapshots(str(folder))[0]] == [f"network-snapshot-{number}.pkl" for number in numbers]


@pytest.mark.parametrize("cores, gpus, workers", [(1, 1, 1), (2, 1, 2), (16, 1, 3), (4, 2, 2), (1, 2, 0), (7, 2, 3)])
def test_default_workers_are_no_more_than_the_cores(cores, gpus, workers, camera_zip, monkeypatch):
    monkeypatch.setattr("training.run.config.usable_cores", lambda: cores)
    base = ["--outdir=x", f"--data={camera_zip}", "--cfg=raycond2", "--device=cpu", f"--gpus={gpus}", "-n"]
    assert options_of(run_train(*base)[1])["data_loader_kwargs"]["num_workers"] == workers
    assert options_of(run_train(*base, "--workers=5")[1])["data_loader_kwargs"]["num_workers"] == 5


def test_a_dry_run_checks_what_the_run_would(camera_zip, tmp_path, monkeypatch):
    """It refuses with the run's words; it fetches and makes nothing, and says what it could therefore not check."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("metrics.detectors.files.open_url", lambda *args, **kwargs: pytest.fail("it fetches"))
    monkeypatch.setattr("dnnlib.util._download", lambda *args: pytest.fail("it downloads"))
    base = [f"--outdir={tmp_path / 'runs'}", f"--data={camera_zip}", "--cfg=raycond2", "-n", *SMALL]
    refused(*base, "--metrics=fid8_fll", says=["--metrics=fid8_fll", "did you mean fid50k_full"])
    refused(*base, "--metrics=eqr50k", says=["--metrics=eqr50k", "StyleGAN3"])
    refused(*base, "--metrics=fid65", f"--detector={save_detector(tmp_path / 'tiny.pt')}", says=["--metrics=fid65", "64"])
    refused(*base, "--metrics=fid8_full", "--detector=absent.pt", says=["absent.pt", "no such file"])
    refused(*base, "--metrics=pose_error8", "--pose-regressor=absent.pt",
            says=["--metrics=pose_error8: --pose-regressor=absent.pt: there is no such file"])
    refused(*base, "--metrics=view_consistency8", "--embedding=absent.pt", says=["--embedding=absent.pt: there is no such file"])
    refused(*base, f"--outdir={camera_zip}", says=[f"--outdir={camera_zip}", "not a folder"])
    refused(*base, "--resume=absent.pkl", says=["absent.pkl"])
    refused(*base, "--resume", save_small(tmp_path / "d.pkl", D=True), says=["d.pkl", "no generator"])
    code, output = run_train(*base, "--metrics=fid8_full", "--resume=https://example.org/x.pkl")
    assert code == 0 and "downloads nothing: the run fetches the detector inception" in output
    assert "--resume=https://example.org/x.pkl was not checked" in output
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("script, args, unbuffered", [
    ("train.py", ["--help"], ""), ("calc_metrics.py", ["--help"], "1"), ("legacy.py", ["--source=tests/data/pickles/raycond2.pkl"], ""),
    ("gen_images.py", ["--network=checkpoints/raycond2-heads-32x32.pkl", "--seeds=0", "--device=cpu"], "1")])
def test_a_reader_that_leaves_ends_a_command_quietly(script, args, unbuffered, tmp_path):
    """As in `| head`: no traceback, nor Python's own complaint at its end."""
    out = dict(gen_images=[f"--outdir={tmp_path}"], legacy=[f"--dest={tmp_path / 'x.pkl'}"]).get(script.removesuffix(".py"), [])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, script, *args, *out], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, cwd=ROOT,
                          env=dict(os.environ, PYTHONUNBUFFERED=unbuffered, OMP_NUM_THREADS="1"))
    os.close(writer)
    assert done.returncode == 141 and done.stderr == "", done.stderr


def test_two_processes(camera_zip, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond2", "--gpus=2", "--kimg=0.016", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    folder, = tmp_path.iterdir()
    assert "gpus2" in folder.name and (folder / "network-snapshot-000000.pkl").exists()
    assert done.stdout.count("tick 0 ") == 1                    # one rank speaks


def test_a_mistake_in_two_processes_is_one_line(tmp_path):
    """A PNG that breaks only when it is read."""
    data = write_dataset(tmp_path / "data.zip", camera_labels(16))
    raw = bytearray(Path(data).read_bytes())
    start = raw.index(b"IDAT")
    raw[start + 20 : start + 120] = bytes(100)
    Path(data).write_bytes(raw)
    command = [sys.executable, str(ROOT / "train.py"), f"--outdir={tmp_path}", f"--data={data}", "--cfg=raycond2", "--gpus=2", "--kimg=0.1", *SMALL]
    done = subprocess.run([*command, "--workers=1"], capture_output=True, text=True, timeout=300)
    message = done.stderr[done.stderr.index("Error: "):].strip()
    assert done.returncode == 1 and "\n" not in message and "img00000000.png" in message, done.stderr


@pytest.mark.parametrize("extra", [[], ["--cond=1"]])
def test_stylegan2_with_and_without_classes(class_zip, tmp_path, extra):
    code, output = run_train("--outdir", tmp_path, "--data", class_zip, "--cfg=stylegan2", "--kimg=0.008", *SMALL, *extra)
    assert code == 0, output
    folder, = tmp_path.iterdir()
    assert legacy.load_network_pkl(folder / "network-snapshot-000000.pkl")["G"].c_dim == (3 if extra else 0)
    assert not (folder / "views000000.png").exists()


# ---------------------------------------------------------------------------------------------------------------------

def test_the_readmes_command_means_what_it_says(camera_zip, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "check_resume", lambda config, rays_given: [])
    monkeypatch.setattr("torch_utils.distributed.choose_device", lambda device, gpus: "cuda")
    code, output = run_train("--outdir=training-runs", f"--data={camera_zip}", "--cfg=raycond2", "--gpus=2", "--batch=32", "--gamma=1", "--snap=20", "--cond=1",
                       "--aug=noaug", "--resume=checkpoints/stylegan2-ffhq-512x512.pkl", "-n")
    assert code == 0, output
    options = options_of(output)
    assert options["run_dir"] == os.path.join("training-runs", "00000-raycond2-cameras-gpus2-batch32-gamma1")
    assert (options["num_gpus"], options["batch_size"], options["batch_gpu"]) == (2, 32, 16)
    assert options["loss_kwargs"] == dict(class_name="training.loss.StyleGAN2Loss", r1_gamma=1.0, style_mixing_prob=0.9, pl_weight=2.0,
                                          blur_init_sigma=0, blur_fade_kimg=0)
    assert options["G_opt_kwargs"]["lr"] == options["D_opt_kwargs"]["lr"] == 0.002 and options["G_opt_kwargs"]["betas"] == [0.0, 0.99]
    assert options["G_reg_interval"] == 4 and options["D_reg_interval"] == 16
    assert options["G_kwargs"]["mapping_kwargs"]["num_layers"] == 8 and options["G_kwargs"]["num_fp16_res"] == 4 and options["G_kwargs"]["conv_clamp"] == 256
    assert options["ema_kimg"] == 10 and options["ema_rampup"] is None and options["network_snapshot_ticks"] == 20
    assert not os.path.exists("training-runs") or not os.listdir("training-runs")


# The authors' runs: preset, gamma, GPUs, ticks between snapshots, where they start.
RUNS = {
    "raycond2-ffhq":        ("raycond2",   1,   2, 20, "stylegan2-ffhq-512x512.pkl"),
    "raycond2-ffhq-1024":   ("raycond2",   1,   2, 20, "stylegan2-ffhq-1024x1024.pkl"),
    "raycond2-afhq":        ("raycond2",   2.5, 2, 40, "stylegan2-afhqcat-512x512.pkl"),
    "raycond2-cars":        ("raycond2",   0.3, 8, 20, None),
    "raycond3-t-ffhq":      ("raycond3-t", 10,  2, 20, "stylegan3-t-ffhq-1024x1024.pkl"),
    "raycond3-t-afhq":      ("raycond3-t", 5,   2, 20, "stylegan3-t-afhqv2-512x512.pkl"),
    "raycond3-t-cars":      ("raycond3-t", 0.5, 8, 40, None),
}


@pytest.fixture
def eight_gpus(monkeypatch):
    """As on such a machine, up to where something would be computed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(train, "check_resume", lambda config, rays_given: [])


@pytest.mark.parametrize("name", RUNS)
def test_recipes(name, camera_zip, eight_gpus):
    preset, gamma, gpus, snap, network = RUNS[name]
    base = ["--outdir=x", f"--data={camera_zip}", f"--recipe={name}", "-n"]
    code, output = run_train(*base)
    options = options_of(output)
    resume = None if network is None else f"checkpoints/{network}"
    assert code == 0 and os.path.basename(options["run_dir"]) == f"00000-{preset}-cameras-gpus{gpus}-batch32-gamma{gamma:g}"
    assert (options["loss_kwargs"]["r1_gamma"], options["num_gpus"], options["batch_size"], options["resume_pkl"]) == (gamma, gpus, 32, resume)
    assert options["network_snapshot_ticks"] == options["image_snapshot_ticks"] == snap and options["augment_kwargs"] is None
    assert options["label_dim"] == 25 and f"--recipe={name} fills --cfg={preset} --gamma={gamma}" in output and f"--gpus={gpus}." in output

    code, output = run_train(*base, "--gamma=7", "--gpus=1", "--snap=3", "--resume=none", "--aug=ada", "--batch=16", "--metrics=none")
    options = options_of(output)
    assert code == 0 and (options["loss_kwargs"]["r1_gamma"], options["num_gpus"], options["network_snapshot_ticks"]) == (7, 1, 3)
    assert options["resume_pkl"] is None and options["ada_kimg"] == 500 and options["batch_size"] == 16
    assert f"fills --cfg={preset} --cond=1 (the authors had {gpus} GPUs)" in output


def test_every_recipe_is_one_of_the_authors():
    assert RECIPES.keys() == RUNS.keys()


@pytest.mark.parametrize("available, asked, gpus", [
    (1, {}, 1), (2, {}, 2), (3, {}, 2), (7, {}, 4), (8, {}, 8), (16, {}, 8), (8, dict(gpus=3), 3), (8, dict(batch=12), 3), (8, dict(batch=8), 2),
    (8, dict(batch_gpu=8), 4), (8, dict(mbstd_group=16), 2), (8, dict(batch=7), 1)])
def test_a_recipe_takes_the_gpus_that_there_are(available, asked, gpus):
    """The most that the machine has, up to the authors' number, among which the batch divides; one process on a CPU."""
    options = apply_recipe(Options("x", "y", recipe="raycond2-cars", **asked))
    assert choose_gpus(options, preset_of(options), available) == gpus


def test_a_recipe_on_a_cpu_is_one_process(camera_zip):
    code, output = run_train("--outdir=x", f"--data={camera_zip}", "--recipe=raycond2-cars", "--device=cpu", "-n")
    assert code == 0 and options_of(output)["num_gpus"] == 1 and "--gpus=1 (the authors had 8 GPUs)" in output


@pytest.mark.parametrize("name", [name for name, row in RUNS.items() if row[-1]])
def test_a_missing_checkpoint_says_where_it_comes_from(name, camera_zip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = RUNS[name][-1]
    source = f"nvidia/research/{network[:9]}"
    refused("--outdir=x", f"--data={camera_zip}", f"--recipe={name}", "--device=cpu", says=[
        f"--recipe={name}", f"no such file: checkpoints/{network}", source, "--resume=FILE", "--resume=none"])
    message = refused("--outdir=x", f"--data={camera_zip}", "--cfg=raycond2", f"--resume={network}", "--device=cpu", says=[network, source])
    assert "--recipe" not in message


def test_the_list_of_checkpoints_says_where_each_comes_from():
    rows = [line for line in (ROOT / "checkpoints" / "checkpoints.txt").read_text().splitlines() if not line.startswith("#")]
    assert {row[-1] for row in RUNS.values() if row[-1]} <= {row.split()[0] for row in rows}
    for row in rows:
        says = legacy.where_from(f"somewhere/{row.split()[0]}")
        released = row.startswith("raycond") and "heads" not in row
        for part in ["RayConditioningCheckpoints.zip", "https://ray-cond.github.io"] if released else ["NVIDIA", "NGC"] if row.startswith("style") else ["git"]:
            assert part in says, row
    assert legacy.where_from("other.pkl") == legacy.where_from("#") == legacy.where_from("") == ""


def test_a_network_of_another_size(camera_zip, tmp_path):
    """From 32 to 16 px: what both sizes have is copied, and said."""
    large = write_dataset(tmp_path / "large.zip", camera_labels(16), size=32)
    base = ["--kimg=0.008", "--gamma=1", *SMALL]
    assert run_train(f"--outdir={tmp_path / 'large'}", f"--data={large}", "--cfg=stylegan2", "--aug=noaug", *base)[0] == 0
    network = tmp_path / "large" / "00000-stylegan2-large-gpus1-batch8-gamma1" / "network-snapshot-000000.pkl"
    code, output = run_train(f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond2", f"--resume={network}", "-n", *base)
    assert code == 0 and f"{network} makes images of 32 px, and --data has 16 px: 100% of G's and " in output and "StyleGAN3" not in output
    code, output = run_train(f"--outdir={tmp_path}", f"--data={large}", "--cfg=raycond2", f"--resume={network}", "-n", *base)
    assert code == 0 and "makes images of" not in output


def test_every_stylegan3_option_is_there():
    names = {option for param in train.main.params for option in param.opts}
    wanted = """outdir cfg data gpus batch gamma cond mirror aug resume freezed p target batch-gpu cbase cmax glr dlr map-depth mbstd-group desc metrics
                kimg tick snap seed fp32 nobench workers dry-run""".split()
    assert {f"--{name}" for name in wanted} | {"-n"} <= names


def test_options_without_effect_are_named(camera_zip, tmp_path):
    base = [f"--outdir={tmp_path}", f"--data={camera_zip}", "--cfg=raycond2", "-n", *SMALL]
    code, output = run_train(*base, "--aug=noaug", "--samples=10", "--target=0.5", "--p=0.1")
    assert code == 0
    assert "no --metrics: --samples has no effect" in output and "--target=0.5 has no effect" in output and "--p=0.1 has no effect" in output
    code, output = run_train(*base, "--aug=fixed", "--target=0.5")
    assert code == 0 and "--target=0.5 has no effect" in output
    code, output = run_train(*base, "--aug=ada", "--target=0.5")
    assert code == 0 and "no effect" not in output and options_of(output)["ada_target"] == 0.5


def test_precision_options(camera_zip):
    base = ["--outdir=x", f"--data={camera_zip}", "--cfg=raycond2", "-n", *SMALL]
    options = options_of(run_train(*base, "--fp32=1")[1])
    assert options["G_kwargs"]["num_fp16_res"] == options["D_kwargs"]["num_fp16_res"] == 0 and options["G_kwargs"]["conv_clamp"] is None
    options = options_of(run_train(*base, "--bf16=1")[1])
    assert options["G_kwargs"]["half_dtype"] == options["D_kwargs"]["block_kwargs"]["half_dtype"] == "bf16"


def test_run_numbers_go_up(tmp_path):
    (tmp_path / "00003-old").mkdir()
    (tmp_path / "notes").mkdir()
    assert next_run_dir(str(tmp_path), "new") == str(tmp_path / "00004-new")


# ---------------------------------------------------------------------------------------------------------------------

def test_refusals_of_options(camera_zip, class_zip, tmp_path):
    base = [f"--outdir={tmp_path / 'runs'}", "--device=cpu", "--workers=0"]
    ray = [*base, f"--data={camera_zip}", "--cfg=raycond2"]
    refused(*base, f"--data={camera_zip}", "--cfg=raycon2", says=["--cfg=raycon2", "did you mean raycond2?"])
    refused(*base, f"--data={camera_zip}", says=["--cfg is missing", "raycond2"])
    refused(*base, f"--data={camera_zip}", "--recipe=raycond2-fhq", says=["--recipe", "did you mean raycond2-ffhq?"])
    refused(*ray, "--cond=0", says=["--cond=0", "camera labels"])
    refused(*ray, "--batch=9", "--gpus=2", says=["--batch=9", "--gpus=2"])
    refused(*ray, "--batch=8", "--batch-gpu=3", says=["--batch-gpu=3", "divisor of 8"])
    refused(*ray, "--batch=8", "--mbstd-group=3", says=["--mbstd-group=3"])
    refused(*ray, "--batch=8", "--batch-gpu=1", says=["--mbstd-group=4", "--batch-gpu=1", "use --mbstd-group=1"])
    refused(*ray, "--batch=2", says=["--mbstd-group=4", "--batch=2"])
    refused(*ray, "--gpus=3", says=["--gpus=3", "--batch=32 (the default)", "multiple of 3"])
    refused(*ray, "--batch=8", "--batch-gpu=16", says=["--batch-gpu=16", "--batch=8"])
    for option in ("--kimg", "--tick", "--glr", "--dlr", "--p", "--target"):
        refused(*ray, f"{option}=nan", says=[option, "nan"])
    refused(*ray, "--cbase=8", says=["--cbase=8", "16"])
    refused(*ray, "--gamma=-1", says=["--gamma", "auto"])
    refused(*ray, "--gpus=500", says=["--gpus=500"])
    refused(*base, f"--data={class_zip}", "--cfg=raycond2", says=["25", "dataset.json"])
    refused(*base, f"--data={class_zip}", "--cfg=stylegan2", "--dcond=rays", "--cond=1", says=["--dcond=rays"])
    refused(*base, f"--data={camera_zip}", "--cfg=stylegan2", "--rays=pinhole", says=["--rays=pinhole"])
    refused(*ray, "--resume=nowhere.pkl", says=["nowhere.pkl", "no such file"])
    text = tmp_path / "text.pkl"
    text.write_text("hello")
    refused(*ray, f"--resume={text}", says=["text.pkl", "not a network file"])
    refused(*ray, "--resume", Path(__file__).parent / "data" / "pickles" / "raycond2.pkl", *SMALL, "--cmax=4", says=["--resume", "% of the parameters"])
    refused(*ray, f"--outdir={text}", "--kimg=0.008", *SMALL, says=["--outdir", "text.pkl"])
    refused(*ray, "--resume=nowhere.pkl", says=["--resume=nowhere.pkl: no such file"])
    refused(*ray, f"--resume={text}", says=[f"--resume={text}: not a network file"])
    refused(*ray, f"--resume={tmp_path}/absent.pt", says=[f"--resume={tmp_path}/absent.pt: "])
    refused(*base, f"--data={class_zip}", "--cfg=raycond2", says=[f"--data={class_zip}: "])
    refused(*ray, "--fp32=1", "--bf16=1", says=["--fp32=1", "--bf16=1"])
    assert not (tmp_path / "runs").exists()


def change(label, **parts):
    """A label with its pose or lens replaced by the function given."""
    pose, lens = np.array(label[:16]).reshape(4, 4), np.array(label[16:]).reshape(3, 3)
    pose, lens = parts.get("pose", lambda m: m)(pose), parts.get("lens", lambda m: m)(lens)
    return [float(v) for v in (*pose.ravel(), *lens.ravel())]


OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@pytest.mark.parametrize("kind, parts, says", [
    ("transposed",      dict(pose=lambda m: m.T),                               ["transposed"]),
    ("world-to-camera", dict(pose=np.linalg.inv),                               ["world-to-camera"]),
    ("OpenGL",          dict(pose=lambda m: m @ OPENGL),                        ["OpenGL"]),
    ("pixels",          dict(lens=lambda k: np.diag([512.0, 512.0, 1.0]) @ k),  ["pixels"]),
    ("no rotation",     dict(pose=lambda m: m * np.array([2.0, 1, 1, 1])),      ["rotation"]),
    ("NaN",             dict(pose=lambda m: m * np.nan),                        []),
])
def test_refusals_of_cameras(tmp_path, kind, parts, says):
    labels = [change(label, **parts) for label in camera_labels(32)]
    data = write_dataset(tmp_path / "bad.zip", labels)
    refused(f"--outdir={tmp_path / 'runs'}", f"--data={data}", "--cfg=raycond2", *SMALL, says=["bad.zip", *says])
    assert not (tmp_path / "runs").exists()
    if kind in ("world-to-camera", "OpenGL"):                   # judged from geometry: may be meant
        assert run_train(f"--outdir={tmp_path / 'runs'}", f"--data={data}", "--cfg=raycond2", "--camera-check=off", "-n", *SMALL)[0] == 0


def test_refusals_of_data(tmp_path, camera_zip):
    base = [f"--outdir={tmp_path / 'runs'}", "--cfg=raycond2", *SMALL]
    refused(*base, "--data=nowhere.zip", says=["nowhere.zip"])
    cut = tmp_path / "cut.zip"
    cut.write_bytes(Path(camera_zip).read_bytes()[:5000])
    refused(*base, f"--data={cut}", says=["cut.zip"])
    refused(*base, "--data", write_dataset(tmp_path / "odd.zip", camera_labels(8), size=20), says=["odd.zip", "20"])
    refused(*base, "--data", write_dataset(tmp_path / "some.zip", [*camera_labels(7), None]), says=["some.zip", "label"])
    refused(*base, "--data", write_dataset(tmp_path / "short.zip", [label[:24] for label in camera_labels(8)]), says=["25"])
    assert not (tmp_path / "runs").exists()


# --- what people type

@pytest.mark.parametrize("desc, says", [("a/b", "--desc=a/b"), ("../up", "--desc=../up"), ("a\\b", "folder's name"), ("a\nb", "control character"),
                                        ("x" * 300, "expected 255 at most")])
@pytest.mark.parametrize("dry", [[], ["-n"]])
def test_descriptions_that_make_no_folder_are_refused_before_anything_is_made(camera_zip, tmp_path, desc, says, dry):
    refused(f"--outdir={tmp_path / 'runs'}", f"--data={camera_zip}", "--cfg=raycond2-tiny", f"--desc={desc}", *dry, *SMALL, says=["--desc", says])
    assert not (tmp_path / "runs").exists()


def test_names_in_the_data_do_not_steer_the_terminal(camera_zip, tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(Path(camera_zip).read_bytes())
    with zipfile.ZipFile(path) as archive:
        document = json.loads(archive.read("dataset.json"))
    document["labels"].append(["a\x1b[2J\n.png", camera_labels(1)[0]])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("dataset.json", json.dumps(document))
    code, output = run_train(f"--outdir={tmp_path / 'runs'}", f"--data={path}", "--cfg=raycond2-tiny", "-n", *SMALL)
    assert code == 0 and r"the first is a\x1b[2J\n.png" in output and "\x1b" not in output


def test_values_as_shells_and_windows_leave_them(camera_zip, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cameras.zip").write_bytes(Path(camera_zip).read_bytes())
    code, output = run_train("--outdir=~/runs\r", "--data=~/cameras.zip\r", "--cfg=raycond2-tiny\r", "--desc=é b\r", "-n\r", "\r", *SMALL)
    assert code == 0 and options_of(output)["run_dir"].startswith(str(tmp_path / "runs" / "00000-raycond2-tiny-cameras"))
    assert options_of(output)["training_set_kwargs"]["path"] == str(tmp_path / "cameras.zip") and options_of(output)["run_dir"].endswith("-é b")


def test_notes_of_the_data_are_part_of_the_plan(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(32):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"photo{i}.jpg", exif=exif)
    Image.new("RGB", (64, 64)).save(tmp_path / "grid.png")
    code, output = run_train(f"--outdir={tmp_path / 'runs'}", f"--data={tmp_path}", "--cfg=stylegan2", "-n", *SMALL)
    assert code == 0 and "32 of 32 images are turned upright" in output and "grid.png is a sheet" in output


@pytest.mark.parametrize("screen", ["ascii", "none"])
def test_a_screen_without_the_letters_and_no_screen_end_no_run(camera_zip, tmp_path, monkeypatch, screen):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) if screen == "ascii" else None
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr("training.training_loop.training_loop", lambda *args, **kwargs: print("it trained in", args[0]["run_dir"]))
    with pytest.raises(SystemExit) as end:
        train.main([f"--outdir={tmp_path / 'é'}", f"--data={camera_zip}", "--cfg=raycond2-tiny", "--desc=ü", *SMALL])
    assert not end.value.code
    run, = (tmp_path / "é").iterdir()
    assert run.name.endswith("-ü") and f"it trained in {run}\n" in (run / "log.txt").read_text(encoding="utf-8")
    assert stdout is None or rb"\xe9/00000" in stdout.buffer.getvalue()
