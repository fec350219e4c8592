"""The demonstration: fresh data, a few minutes of training from the shipped heads, how well they obey their camera, and the same heads
from the left to the right.
"""

from __future__ import annotations

import glob
import os
import shlex
import subprocess
import sys
import time

import click
import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image

import legacy
from camera_utils import Camera, Orbit
from dnnlib import UserError, cli
from dnnlib.util import format_time, run_program
from metrics.detectors.pose_regressor import angles_deg, viewing_directions
from training.run.snapshots import to_uint8

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADS = os.path.join(ROOT, "checkpoints", "raycond2-heads-32x32.pkl")
BATCH = 16                          # of the preset raycond2-tiny
STEPS_PER_PROBE = 2.5               # a training step, lazy regularisation included, takes this many times as long as `seconds_per_pass`
PASSIVE_WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}       # as in the Makefile
SHOWN = 128                         # pixels of a picture on the screen
JUDGE_SCENES = 3                    # heads that the pose regressor learns from, for each one that is trained on ...
JUDGE_EPOCHS = 7                    # ... and how often it sees them
JUDGED = 512                        # images of the network that it judges
GIF_SEEDS, GIF_COLUMNS = range(8), 4
GIF_FRAMES, FRAME_MS = 48, 50


@click.command(cls=cli.Command)
@click.option("--seconds", help="How long to train", type=click.FloatRange(min=1), default=120, show_default=True)
@click.option("--kimg",    help="Train for that many thousands of images instead", type=click.FloatRange(min=0, min_open=True))
@click.option("--scenes",  help="Heads to render and train on", type=click.IntRange(min=BATCH), default=2000, show_default=True)
@click.option("--seed",    help="Which heads", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--network", help="Network to continue from", metavar="PKL", type=cli.PATH, default=HEADS, show_default=True)
@click.option("--outdir",  help="Where everything goes", metavar="DIR", type=cli.PATH, default="demo-out", show_default=True)
def main(seconds: float, kimg: float | None, scenes: int, seed: int, network: str, outdir: str) -> None:
    """Render heads, continue training from the shipped network, write a grid of views and an orbit."""
    start = time.monotonic()
    if not os.path.isfile(network):
        raise UserError(f"--network={network}: there is no such file; give a raycond2 network, or get the shipped one back: git checkout checkpoints")
    outdir, network = os.path.abspath(outdir), os.path.abspath(network)
    os.makedirs(outdir, exist_ok=True)
    data, judged, regressor, runs, views = (os.path.join(outdir, name) for name in (
        "heads.zip", "more-heads.zip", "pose-heads.pt", "training-runs", "views"))

    resolution = load(network)["G_ema"].img_resolution
    render = ("-m", "dataset_preprocessing.procedural.render", "--kind=heads", "--force")
    say(f"1. {scenes} heads that the network has not seen")
    run(*render, f"--scenes={scenes}", f"--resolution={resolution}", f"--seed={seed}", f"--dest={data}")

    say("2. A network that tells the pose of a head, to judge with")
    run(*render, f"--scenes={JUDGE_SCENES * scenes}", "--resolution=32", f"--seed={seed + 1}", f"--dest={judged}")
    run("-m", "metrics.pose_regressor", f"--data={judged}", f"--dest={regressor}", f"--kimg={JUDGE_EPOCHS * JUDGE_SCENES * scenes / 1000:g}")

    kimg = kimg or choose_kimg(network, seconds)
    say(f"3. Training on the heads for {kimg:g} kimg")
    run("train.py", f"--outdir={runs}", f"--data={data}", "--cfg=raycond2-tiny", f"--resume={network}", f"--kimg={kimg:g}", f"--tick={kimg / 4:g}",
        "--snap=100", "--workers=0", "--device=cpu", "--new")
    snapshot = max(glob.glob(os.path.join(runs, "*", "network-snapshot-*.pkl")), key=os.path.getmtime)
    print()
    for what, path in (("before", network), ("after", snapshot)):
        print(f"Pose error {what} training: {pose_error_deg(path, regressor):.1f} degrees")
    print("(A network that ignores its camera: some 22 degrees. What the regressor itself is wrong by stands above as its held-out error.)")

    say("4. A grid of views: a row per head, a column per camera")
    run("gen_images.py", f"--network={snapshot}", "--seeds=0-5", "--trunc=0.7", "--yaw=-0.6,-0.4,-0.2,0,0.2,0.4,0.6", "--grid", f"--outdir={views}")
    with Image.open(os.path.join(views, "grid.png")) as grid:
        grid.resize([side * SHOWN // resolution for side in grid.size], Image.Resampling.BICUBIC).save(os.path.join(outdir, "views.png"))

    say("5. An orbit")
    save_orbit(snapshot, os.path.join(outdir, "orbit.gif"))

    say(f"Done in {format_time(time.monotonic() - start)}. Look at:")
    for what, path in (("the same heads from the left to the right", "views.png"), ("the heads turning", "orbit.gif"),
                       ("the run: log, curves, images of each snapshot", os.path.dirname(snapshot)), ("the new network", snapshot)):
        print(f"  {os.path.join(outdir, path)}  ({what})")


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def run(*command: str) -> None:
    """Runs a script or module of the project in a process of its own, and says how."""
    print("$ python " + shlex.join(command), flush=True)
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=dict(PASSIVE_WAIT, **os.environ))
    if result.returncode != 0:
        raise UserError(f"python {shlex.join(command)} ended with exit code {result.returncode}; its message stands above")


def choose_kimg(network: str, seconds: float) -> float:
    """About as much training as fits into the time on this machine."""
    return float(np.clip(round(seconds / (1000 / BATCH * STEPS_PER_PROBE * seconds_per_pass(network)), 1), 0.2, 50))


def load(network: str) -> dict:
    """The networks of a snapshot. Raises UserError where they have no cameras or are not all there."""
    networks = legacy.load_network_pkl(network)
    if any(networks[name] is None for name in ("D", "G_ema", "camera_stats")):
        raise UserError(f"--network={network}: expected a snapshot with G_ema, D and camera statistics, as train.py writes it")
    return networks


def seconds_per_pass(network: str, repeats: int = 5) -> float:
    """Time of one batch through G and D and back, the fastest of some."""
    networks = load(network)
    G, D, stats = networks["G_ema"], networks["D"], networks["camera_stats"]
    z = torch.randn([BATCH, G.z_dim], dtype=torch.float32)
    c = Camera.from_stats(stats, torch.linspace(-0.5, 0.5, BATCH, dtype=torch.float32), torch.zeros(BATCH, dtype=torch.float32)).to_label()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        D.requires_grad_(True)(G.requires_grad_(True)(z, c), c).sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def pose_error_deg(network: str, regressor: str) -> float:
    """Mean angle between the viewing directions asked for and those seen, over cameras of the data that the network knows."""
    networks = load(network)
    G, examples = networks["G_ema"], torch.tensor(networks["camera_stats"]["examples"], dtype=torch.float32)
    detector = torch.jit.load(regressor)
    draw = torch.Generator().manual_seed(0)
    angles = []
    for _ in range(JUDGED // BATCH):
        c = examples[torch.randint(len(examples), [BATCH], generator=draw)]
        images = to_uint8(G(torch.randn([BATCH, G.z_dim], generator=draw, dtype=torch.float32), c))
        angles.append(angles_deg(detector(images).numpy(), viewing_directions(c).numpy()))
    return float(np.concatenate(angles).mean())


@torch.no_grad()
def save_orbit(snapshot: str, path: str) -> None:
    """Heads side by side, seen from a camera that goes once around within the range of the data."""
    networks = load(snapshot)
    G, stats = networks["G_ema"], networks["camera_stats"]
    orbit = Orbit(lambda yaw, pitch: Camera.from_stats(stats, yaw, pitch), stats["yaw_range"], stats["pitch_range"])
    labels = orbit(torch.arange(GIF_FRAMES, dtype=torch.float32) / GIF_FRAMES).to_label()
    z = torch.from_numpy(np.concatenate([np.random.RandomState(seed).randn(1, G.z_dim) for seed in GIF_SEEDS])).float()
    ws = G.mapping(z, None, truncation_psi=0.7)
    # [frames, heads, C, H, W]: the noise stays where it is, so that only the camera moves.
    images = torch.stack([to_uint8(G.synthesis(ws, label.expand(len(z), -1), noise_mode="const")) for label in labels]).numpy()
    frames, heads, channels, height, width = images.shape
    sheets = images.reshape(frames, heads // GIF_COLUMNS, GIF_COLUMNS, channels, height, width).transpose(0, 1, 4, 2, 5, 3)
    sheets = sheets.reshape(frames, heads // GIF_COLUMNS * height, GIF_COLUMNS * width, channels)
    size = [side * SHOWN // height for side in (sheets.shape[2], sheets.shape[1])]
    sheets = [np.asarray(Image.fromarray(sheet).resize(size, Image.Resampling.BICUBIC)) for sheet in sheets]
    imageio.imwrite(path, sheets, duration=FRAME_MS, loop=0)


if __name__ == "__main__":
    run_program(main)
