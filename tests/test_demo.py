"""The demonstration does what it says, from a network that has learned nothing yet."""

import json
import re
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from camera_utils import camera_stats
from dataset_preprocessing.procedural import sample_labels
from training import networks_raycond2
from training.networks import discriminator
from training.run import snapshots

ROOT = Path(__file__).resolve().parent.parent


def demo(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, str(ROOT / "demo" / "run.py"), *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """As the preset raycond2-tiny makes it."""
    torch.manual_seed(0)
    shape = dict(c_dim=25, img_resolution=32, img_channels=3, channel_base=2048, channel_max=64)
    G = networks_raycond2.Generator(z_dim=128, w_dim=128, mapping_kwargs=dict(num_layers=4), rays="pinhole", **shape)
    path = tmp_path_factory.mktemp("network") / "start.pkl"
    stats = camera_stats(sample_labels("heads", list(range(64)), [0] * 64))
    snapshots.save_network(str(path), G, discriminator.Discriminator(**shape), G, None, {}, stats)
    return path


@pytest.mark.slow
def test_demo_renders_trains_and_shows(network, tmp_path):
    result = demo(f"--network={network}", "--scenes=32", "--kimg=0.1", "--outdir=out", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    out = tmp_path / "out"
    for path in ("views.png", "orbit.gif"):
        assert f"  {out / path}  (" in result.stdout
    run_dir, = (out / "training-runs").iterdir()
    options = json.loads((run_dir / "training_options.json").read_text())
    assert options["resume_pkl"] == str(network) and options["total_kimg"] == 0.1
    assert re.search(r"Pose error before training: \d+\.\d degrees\nPose error after training: \d+\.\d degrees", result.stdout)
    assert list(run_dir.glob("network-snapshot-*.pkl")) and (run_dir / "stats.jsonl").stat().st_size > 0

    assert imageio.imread(out / "views.png").shape == (6 * 32 * 4, 7 * 32 * 4, 3)       # a row per head, a column per camera
    frames = imageio.imread(out / "orbit.gif")
    assert frames.shape == (48, 2 * 32 * 4, 4 * 32 * 4, 3)
    moves = np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert moves.min() > 0 and moves.max() < 20, moves                                  # never still, never a jump


def test_demo_without_its_network_says_so_in_one_line(tmp_path):
    result = demo(f"--network={tmp_path / 'no.pkl'}", cwd=tmp_path)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1 and str(tmp_path / "no.pkl") in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_training_time_is_turned_into_kimg(network, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    import run
    assert 0 < run.seconds_per_pass(str(network), repeats=1) < 60
    monkeypatch.setattr(run, "seconds_per_pass", lambda network: 0.2)
    assert run.choose_kimg("", 120) == pytest.approx(120 / (0.2 * run.STEPS_PER_PROBE) * run.BATCH / 1000, abs=0.06)
    monkeypatch.setattr(run, "seconds_per_pass", lambda network: 1e9)
    assert run.choose_kimg("", 120) > 0
