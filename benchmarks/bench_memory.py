"""Peak memory of a training step, each phase in turn: as the project computes it, with the ops' definitions, with recomputed activations.

    python benchmarks/bench_memory.py                                               # raycond2, 64 px, batch 4, CPU
    python benchmarks/bench_memory.py --resolution=128 --csv=benchmarks/memory.csv
    python benchmarks/bench_memory.py --device=cuda --resolution=512 --batch=32

Each way runs in a process of its own. What counts is the peak of the process (on a GPU: of the tensors) above what it held before the
step, with networks, optimisers and data made: gradients, activations, what is kept for the backward passes, and Adam's means, which the
step makes. `reference` is RAYCOND_OPS=reference, an operation of PyTorch for each step of an op's definition: the way in which the
released code computes where its kernels were not compiled, and our measure for it.
"""

from __future__ import annotations

import dataclasses
import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
from results import save_rows
from timing import MEMORY_SCRIPT, ROOT, examples, run_script

from training.config import Options
from training.presets import PRESETS

CHECKPOINT = "checkpoint_activations"   # of training.config.Options, once there is such an option
SCRIPT = MEMORY_SCRIPT + """
import json, sys
sys.path.insert(0, {folder!r})
import torch
from timing import prepare
from training_step import TrainingStep
device = prepare({device!r}, {threads})
on_gpu = device.type == 'cuda'
step = TrainingStep({cfg!r}, {resolution}, {batch}, device, {batch_gpu}, **{options!r})
before = torch.cuda.memory_allocated(device) if on_gpu else memory('VmRSS')
peaks = {{}}
for name in {phases!r} or step.intervals:
    torch.cuda.reset_peak_memory_stats(device) if on_gpu else forget_peak()
    step.run(name)
    peaks[name] = (torch.cuda.max_memory_allocated(device) if on_gpu else memory('VmHWM')) - before
print(json.dumps(peaks))
"""


def ways(options: dict[str, object]) -> dict[str, tuple[str, dict[str, object]]]:
    """Name -> RAYCOND_OPS, options of the training run."""
    found = {"as it is": ("auto", options), "reference": ("reference", options)}
    if CHECKPOINT in {field.name for field in dataclasses.fields(Options)}:
        found["checkpoint-activations"] = ("auto", dict(options, **{CHECKPOINT: True}))
    return found


@click.command(epilog=examples(__doc__))
@click.option("--cfg", type=click.Choice([name for name, row in PRESETS.items() if row.rays]), default="raycond2", show_default=True)
@click.option("--resolution", default=64, show_default=True, help="Of the images [px]")
@click.option("--batch", default=4, show_default=True, help="Images in a step")
@click.option("--batch-gpu", type=int, help="Images in a pass  [default: all]")
@click.option("--cbase", type=int, help="Channels at resolution r are this / r  [default: as the preset]")
@click.option("--cmax", type=int, help="Channels at most  [default: as the preset]")
@click.option("--phases", metavar="A,B", help="Such as Gmain,Dreg  [default: all]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--seconds", default=600.0, show_default=True, help="About how long to measure; the two first ways in any case")
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
def main(cfg: str, resolution: int, batch: int, batch_gpu: int | None, cbase: int | None, cmax: int | None, phases: str | None, device: str, threads: int,
         seconds: float, csv_path: str | None) -> None:
    """Print a row per way: the largest peak and those of the phases."""
    begin = time.perf_counter()
    found = ways(dict(cbase=cbase, cmax=cmax))
    for count, (way, (mode, options)) in enumerate(found.items()):
        spent = time.perf_counter() - begin
        if count >= 2 and spent + spent / count > seconds:
            print(f"{way}: not measured (time)")
            continue
        script = SCRIPT.format(folder=str(ROOT / "benchmarks"), device=device, threads=threads, cfg=cfg, resolution=resolution, batch=batch,
                               batch_gpu=batch_gpu, options=options, phases=None if phases is None else phases.split(","))
        peaks = run_script(script, dict(RAYCOND_OPS=mode))
        row = dict(way=way, network=cfg, resolution=resolution, batch=batch, device=device, threads=threads, peak_mb=f"{max(peaks.values()) / 1e6:.0f}",
                   **{f"{name}_mb": f"{peak / 1e6:.0f}" for name, peak in peaks.items()})
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if csv_path is not None:
            save_rows(csv_path, [row])
    if "checkpoint-activations" not in found:
        print("checkpoint-activations: train.py has no such option, not measured")


if __name__ == "__main__":
    main()
