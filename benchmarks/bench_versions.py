"""Two versions of this project in turns: how much faster does one train than the other?

    git worktree add ../before da4d652
    python benchmarks/bench_versions.py ../before                                   # raycond2-tiny, 32 px, batch 16
    python benchmarks/bench_versions.py ../before --dcond=pose --no-path-length     # what most of our experiments run
    python benchmarks/bench_versions.py ../before --resolution=64 --csv=benchmarks/versions.csv

Each version is a process of its own. They take turns step by step, so that other work on the machine affects both. A
round is as many steps as it takes until every phase has run as often as it is due. The CPU time of the process counts:
labels, phases, optimisers, the average of G; random images stand for the data. The speedup is the median of the rounds'
ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import click
import results
from timing import ROOT, examples

# Runs in either version, so it uses what both have: timing.prepare and training_step.TrainingStep of that version's own
# benchmarks. A line in: the number of a step to train. A line out: CPU seconds.
WORKER = """
import contextlib, json, sys, time
from dataclasses import fields, replace
root, cfg, resolution, batch, threads, wanted = sys.argv[1:]
sys.path[:0] = [root, root + "/benchmarks"]
import torch
from timing import prepare
device = prepare("cpu", int(threads))
from training import presets
from training_step import TrainingStep
known = {field.name for field in fields(presets.Preset)}
wanted = {name: value for name, value in json.loads(wanted).items() if name in known}
presets.PRESETS[cfg] = replace(presets.PRESETS[cfg], **wanted)
step = TrainingStep(cfg, int(resolution), int(batch), device)
from torch_utils import memory
settled = getattr(memory, "settled_objects", contextlib.nullcontext)()      # as the training loop, where it does
settled.__enter__()
print(max(phase.interval for phase in step.stepper.phases), flush=True)
for line in sys.stdin:
    begin = time.process_time()
    step.stepper.step(int(line), step.batch, cur_nimg=10**6)     # when all losses have begun
    step.update_average()
    print(time.process_time() - begin, flush=True)
"""


class Version:
    """A process that trains with the code in a folder."""

    def __init__(self, folder: Path, *settings: object):
        env = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS=str(settings[3]))
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, str(folder), *map(str, settings)], cwd=folder,
                                        env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.period = int(self._answer())               # steps

    def seconds(self, step: int) -> float:
        """CPU time of a step."""
        print(step, file=self.process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            code, folder = self.process.wait(), self.process.args[3]
            raise RuntimeError(f"the process of {folder} ended with {code}; its message is above")
        return line


@click.command(epilog=examples(__doc__))
@click.argument("before", type=click.Path(exists=True, file_okay=False))
@click.option("--cfg", default="raycond2-tiny", show_default=True)
@click.option("--resolution", default=32, show_default=True, help="Of the images [px]")
@click.option("--batch", default=16, show_default=True, help="Images in a step")
@click.option("--dcond", type=click.Choice(["pose", "rays", "both"]), default="both", show_default=True, help="How D learns the camera")
@click.option("--path-length/--no-path-length", default=True, show_default=True, help="With path length regularisation every 4 steps?")
@click.option("--own-presets", is_flag=True, help="Each version trains its preset as it is; --dcond and --path-length do not count")
@click.option("--threads", default=1, show_default=True, help="CPU threads of each version")
@click.option("--rounds", default=12, show_default=True, help="Each trains both versions")
@click.option("--csv", "csv_path", help="Append the result to this file", metavar="FILE")
def main(before: str, cfg: str, resolution: int, batch: int, dcond: str, path_length: bool, own_presets: bool, threads: int,
         rounds: int, csv_path: str | None) -> None:
    """Compare training in the folder BEFORE with training in this one. Both train the same: settings that presets of
    different versions do not share are set here, unless --own-presets is given."""
    pl_weight, interval = (2.0, 4) if path_length else (0.0, None)
    same = dict(dcond=dcond, camera_loss=0.0, pl_weight=pl_weight, G_reg_interval=interval,
                synthesis_kwargs=[["fused_modconv_default", "inference_only"]])
    settings = cfg, resolution, batch, threads, json.dumps({} if own_presets else same)
    versions = [Version(Path(before).resolve(), *settings), Version(ROOT, *settings)]
    period = versions[0].period
    for version in versions:
        version.seconds(0)                              # builds what is built on first use
    times: list[list[float]] = []
    for index in range(rounds):
        times.append([0.0, 0.0])
        for step in range(period):
            for which, version in enumerate(versions):
                times[-1][which] += version.seconds(step)
        old, new = times[-1]
        print(f"{index}: {old:.3f} s, {new:.3f} s, {old / new:.3f}", flush=True)
    for version in versions:
        version.close()
    images = period * batch
    ratios = sorted(old / new for old, new in times)
    results.keep(csv_path, dict(
        network=cfg, resolution=resolution, batch=batch, dcond="own" if own_presets else dcond,
        path_length="own" if own_presets else path_length, threads=threads, rounds=rounds,
        before_images_per_s=f"{images / statistics.median(old for old, _ in times):.1f}",
        after_images_per_s=f"{images / statistics.median(new for _, new in times):.1f}",
        speedup=f"{statistics.median(ratios):.3f}", least=f"{ratios[0]:.3f}", most=f"{ratios[-1]:.3f}"))


if __name__ == "__main__":
    main()
