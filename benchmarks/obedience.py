"""How well does a network obey its camera? The runs that docs/experiments.md compares, trained and judged.

    python benchmarks/obedience.py --dir=obedience                  # everything: hours
    python benchmarks/obedience.py --dir=obedience --only=pose,both --seeds=0 --kimg=20
    python benchmarks/obedience.py --dir=obedience --table           # what has been measured so far, in Markdown

The same command again goes on where the last one was cut off. What is measured goes to obedience.csv beside this file, a
row per run, seed and length.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import click
import numpy as np
import torch
from PIL import Image
from results import append_rows, circumstances

import dnnlib
from dnnlib import UserError, cli
from dnnlib.util import run_program

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
TABLE = os.path.join(HERE, "obedience.csv")
RESOLUTION = 32
SCENES = 20000
SAMPLES = 4000                           # generated images of each metric
YAWS = (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)       # [rad], of the mean images
MEAN_OF = 500                            # heads in a mean image
FIRST_SCENE = 60_000_000                 # heads that no data set holds


@dataclass(frozen=True)
class Run:
    """One configuration: train.py's options, and fields of the preset that have no option."""

    options: str
    seeds: tuple[int, ...] = (0,)
    kimg: float = 20
    fields: dict = field(default_factory=dict)


COMMON = "--tick=2 --snap=5 --keep=1 --workers=0 --device=cpu"
THREE = dict(seeds=(0, 1, 2), kimg=60)
TINY = "--cfg=raycond2-tiny"
NOISE = dict(synthesis_kwargs=[["fused_modconv_default", "inference_only"], ["use_noise", True]])
RUNS = {
    # What the defaults are judged by.
    "default":              Run(TINY, **THREE),
    "pose":                 Run(f"{TINY} --dcond=pose --camera-loss=0", **THREE),
    "both":                 Run(f"{TINY} --dcond=both --camera-loss=0", **THREE),
    "label":                Run("--cfg=stylegan2-tiny --cond=1", **THREE),
    "default with published rays": Run(f"{TINY} --rays=published --dcond=both --camera-loss=2", kimg=60),
    "pose with published rays": Run(f"{TINY} --rays=published", kimg=60),
    # What led there: one thing changed at a time.
    "camera loss from the start": Run(TINY, kimg=60, fields=dict(camera_start_kimg=0)),
    "camera loss 5":        Run(f"{TINY} --camera-loss=5", kimg=60),
    "D sees the label only": Run(f"{TINY} --dcond=pose --camera-loss=2", kimg=60),
    "layer noise":          Run(TINY, kimg=60, fields=NOISE),
    "path length":          Run(TINY, kimg=60, fields=dict(pl_weight=2.0, G_reg_interval=4)),
}


# ---------------------------------------------------------------------------------------------------------------------
# Data and the networks that judge.

class Files:
    """What all runs share, in the folder of the experiment."""

    def __init__(self, folder: str):
        self.folder = folder
        self.data, self.views = (os.path.join(folder, name) for name in ("heads-32.zip", "heads-mv-32.zip"))
        self.pose, self.scenes, self.features = (os.path.join(folder, f"{name}-heads-32.pt") for name in ("pose", "scenes", "features"))
        self.means = os.path.join(folder, "means-heads-32.npy")


def prepare(files: Files) -> None:
    """Makes the files that are missing: half an hour of one core."""
    os.makedirs(files.folder, exist_ok=True)
    render = ("-m", "dataset_preprocessing.procedural.render", "--kind=heads", f"--resolution={RESOLUTION}")
    for path, command in [
        (files.data, (*render, f"--scenes={SCENES}")),
        (files.views, (*render, "--scenes=3000", "--views-per-scene=6")),
        (files.pose, ("-m", "metrics.pose_regressor", f"--data={files.data}", "--seed=0")),
        (files.scenes, ("-m", "metrics.scene_embedding", f"--data={files.views}", "--seed=0")),
    ]:
        if not os.path.exists(path):
            run(*command, f"--dest={path}")
    if not os.path.exists(files.features):
        save_features(files)
    if not os.path.exists(files.means):
        np.save(files.means, rendered_means())


class Features(torch.nn.Module):
    """Images [N, 3, H, W] in the range of uint8 -> [N, D]: mean and largest activations of the two networks that judge."""

    def __init__(self, pose: torch.nn.Module, scenes: torch.nn.Module):
        super().__init__()
        self.pose, self.scenes = pose, scenes
        self.resolution = RESOLUTION

    def forward(self, images: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        # Called as the published Inception detector is. Both networks are made for RESOLUTION pixels; larger images are
        # reduced by area means.
        size = [self.resolution, self.resolution]
        images = torch.nn.functional.adaptive_avg_pool2d(images.to(torch.float32), size) / 127.5 - 1.0
        a, b = self.pose.features(images), self.scenes.features(images)     # [N, 128, 4, 4]
        return torch.cat([a.mean([2, 3]), a.amax([2, 3]), b.mean([2, 3]), b.amax([2, 3])], dim=1)


def save_features(files: Files) -> None:
    """A detector for the Fréchet distance: no Inception network is at hand here."""
    detector = Features(torch.jit.load(files.pose), torch.jit.load(files.scenes))
    torch.jit.script(detector.eval()).save(files.features)


def rendered_means() -> np.ndarray:
    """The renderer's mean image of MEAN_OF heads at each of YAWS, [7, 3, S, S] in grey levels."""
    from camera_utils import camera_for
    from dataset_preprocessing.procedural import render, sample_scene
    scenes = [sample_scene("heads", FIRST_SCENE + i) for i in range(MEAN_OF)]
    labels = camera_for("heads", torch.tensor(YAWS), torch.zeros(len(YAWS))).to_label().numpy()
    return np.stack([render(scenes, np.tile(label, (MEAN_OF, 1)), RESOLUTION).mean(axis=0).transpose(2, 0, 1) for label in labels])


# ---------------------------------------------------------------------------------------------------------------------
# Training and judging.

def run(*command: str, log: str | None = None) -> None:
    """A command of the project in a process of its own, with one thread. Its output goes to the screen or to a file."""
    env = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")
    with open(log or os.devnull, "ab") as stream:
        output = dict(stdout=stream, stderr=stream) if log else {}
        result = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, **output)
    if result.returncode != 0:
        says = f"; {log} says why" if log else ""
        raise UserError(f"python {shlex.join(command)} ended with exit code {result.returncode}{says}")


# train.py with another preset: its name, fields and train.py's own arguments.
TRAIN = """
import json, sys
from dataclasses import replace
from training import presets
name, fields = sys.argv.pop(1), json.loads(sys.argv.pop(1))
presets.PRESETS[name] = replace(presets.PRESETS[name], **fields)
import train
train.run_program(train.main)
"""


def train(files: Files, name: str, seed: int, kimg: float) -> str:
    """Trains that run, or goes on with it. Returns its folder."""
    outdir = os.path.join(files.folder, "runs", f"{name.replace(' ', '-')}-seed{seed}")
    os.makedirs(outdir, exist_ok=True)
    row = RUNS[name]
    options = [*COMMON.split(), *row.options.split()]
    cfg = next(option.partition("=")[2] for option in options if option.startswith("--cfg="))
    run("-c", TRAIN, cfg, json.dumps(row.fields), f"--outdir={outdir}", f"--data={files.data}", f"--seed={seed}", f"--kimg={kimg:g}", *options,
        log=os.path.join(outdir, "output.txt"))
    return max(glob.glob(os.path.join(outdir, "0*")))


def judge(files: Files, run_dir: str, kimg: float) -> dict[str, float]:
    """All numbers of the run's snapshot at that many kimg, its last one."""
    snapshot = os.path.join(run_dir, f"network-snapshot-{int(kimg):06d}.pkl")
    if not os.path.exists(snapshot):
        raise UserError(f"{run_dir}: has no snapshot at {kimg:g} kimg; judge it as long as it is, or train it in another --dir")
    run("calc_metrics.py", f"--network={snapshot}", f"--data={files.data}", f"--samples={SAMPLES}", "--gpus=1",
        "--metrics=pose_error,view_consistency,fid50k_full,fid_by_yaw", f"--pose-regressor={files.pose}", f"--embedding={files.scenes}",
        f"--detector=inception={files.features}", log=os.path.join(run_dir, "metrics.txt"))
    results: dict[str, float] = {}
    for path in glob.glob(os.path.join(run_dir, "metric-*.jsonl")):
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                record = json.loads(line)
                if record.get("snapshot_pkl") == os.path.basename(snapshot):
                    results.update(record["results"])
    count = f"{SAMPLES // 1000}k"
    numbers = {name.replace(count, ""): value for name, value in results.items() if isinstance(value, (int, float))}
    return dict(numbers, **motion(files, snapshot))


def motion(files: Files, snapshot: str) -> dict[str, float]:
    """Does what is seen move, or fade? Compares mean images at several yaws with the renderer's, which move.

    mean_image_error: RMS difference of what changes with yaw over that of the renderer's change; 0: moves alike, 1: as if it
    stood still, or as much else changes as moves alike.
    """
    import legacy
    from camera_utils import Camera
    networks = legacy.load_network_pkl(snapshot)
    G, stats = networks["G_ema"], networks["camera_stats"]
    z = torch.from_numpy(np.random.RandomState(0).randn(MEAN_OF, G.z_dim)).float()
    means = []
    with torch.no_grad():
        for yaw in YAWS:
            c = Camera.from_stats(stats, yaw, 0.0).to_label().float()
            images = torch.cat([G(part, c).mul(127.5).add(128).clamp(0, 255) for part in z.split(50)])
            means.append(images.mean(dim=0).numpy())
    ours, theirs = np.stack(means), np.load(files.means)                    # [7, 3, S, S]
    np.save(os.path.join(os.path.dirname(snapshot), "means.npy"), ours)
    save_strip(os.path.join(os.path.dirname(snapshot), "means.png"), [theirs, ours])
    change, expected = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    return dict(mean_image_error=float(np.sqrt(np.square(change - expected).mean() / np.square(expected).mean())))


def save_strip(path: str, rows: Iterable[np.ndarray]) -> None:
    """Rows of images [K, 3, S, S] in grey levels, enlarged."""
    sheet = np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1).transpose(1, 2, 0)
    image = Image.fromarray(sheet.round().clip(0, 255).astype(np.uint8))
    image.resize([4 * side for side in image.size], Image.Resampling.BICUBIC).save(path)


# ---------------------------------------------------------------------------------------------------------------------
# The table.

def measured() -> list[dict[str, str]]:
    if not os.path.exists(TABLE):
        return []
    with open(TABLE, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def is_measured(name: str, seed: int, kimg: float) -> bool:
    return any((row["run"], row["seed"], float(row["kimg"])) == (name, str(seed), kimg) for row in measured())


COLUMNS = {
    "pose_error": "pose error", "pose_error_median": "median", "pose_error_yaw": "yaw", "pose_error_pitch": "pitch", "pose_error_yaw_slope": "yaw slope",
    "pose_error_pitch_slope": "pitch slope", "view_consistency": "consistency", "view_consistency_ratio": "its ratio", "fid_full": "FD",
    "fid_by_yaw": "FD by yaw", "mean_image_error": "mean image",
}


def table() -> str:
    """Mean over the seeds, and what they differ by, in Markdown."""
    groups: dict[tuple[str, float], list[dict[str, str]]] = {}
    for row in measured():
        groups.setdefault((row["run"], float(row["kimg"])), []).append(row)
    lines = [f"| run | kimg | seeds | {' | '.join(COLUMNS.values())} |", "|" + " --- |" * (3 + len(COLUMNS))]
    for (name, kimg), rows in groups.items():
        cells = []
        for column in COLUMNS:
            values = np.array([float(row[column]) for row in rows])
            spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3g}{spread}")
        lines.append(f"| {name} | {kimg:g} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cli_seeds(text: str) -> tuple[int, ...]:
    """'0,1' -> (0, 1)."""
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise click.BadParameter(f"{text!r}: expected numbers with commas between, as 0,1,2")
    return tuple(int(part) for part in text.split(","))


@click.command(cls=cli.Command)
@click.option("--dir", "folder", help="Where data, judges and runs lie", metavar="DIR", type=cli.PATH, default="obedience", show_default=True)
@click.option("--only",  help="Only these runs: names with commas between", metavar="NAMES")
@click.option("--seeds", help="Only these seeds, as 0,1", metavar="SEEDS", type=cli_seeds, default=None)
@click.option("--kimg",  help="Train for that long instead", type=click.FloatRange(min=0, min_open=True))
@click.option("--jobs",  help="Trainings at a time, one thread each", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--table", "only_table", help="Print what has been measured and stop", is_flag=True)
def main(folder: str, only: str | None, seeds: tuple[int, ...] | None, kimg: float | None, jobs: int, only_table: bool) -> None:
    """Train and judge the runs of docs/experiments.md, and print the table."""
    if only_table:
        print(table())
        return
    used = os.path.dirname(os.path.dirname(os.path.abspath(dnnlib.__file__)))
    if used != ROOT:                     # another clone is installed: training would run this code, judging that one
        raise UserError(f"the code in {used} would judge what {ROOT} trains; set PYTHONPATH={ROOT}")
    names = list(RUNS) if only is None else only.split(",")
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        raise UserError(f"--only={only}: there is no run {unknown[0]}; there are {', '.join(RUNS)}")
    files = Files(os.path.abspath(folder))
    prepare(files)
    todo = [(name, seed, kimg or RUNS[name].kimg) for name in names for seed in (seeds or RUNS[name].seeds)]
    writing = threading.Lock()

    def one(name: str, seed: int, length: float) -> None:
        if not is_measured(name, seed, length):
            numbers = judge(files, train(files, name, seed, length), length)
            row = dict(run=name, seed=seed, kimg=length, **{column: numbers.get(column, float("nan")) for column in COLUMNS})
            row.update({key: value for key, value in numbers.items() if key.startswith("fid_by_yaw_bin")})
            with writing:
                append_rows(TABLE, [dict(row, **circumstances())])
            print(f"{name}, seed {seed}, {length:g} kimg: pose error {numbers['pose_error']:.2f} deg, yaw slope "
                  f"{numbers['pose_error_yaw_slope']:.2f}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(one, *item) for item in todo]:
            done.result()
    print(table())


if __name__ == "__main__":
    run_program(main)
