"""Peak memory of a training step, phase by phase: as it is, with the ops' definitions, with recomputed activations.

    python benchmarks/bench_memory.py                                               # raycond2, 64 px, batch 4, CPU
    python benchmarks/bench_memory.py --resolution=128 --csv=benchmarks/memory.csv
    python benchmarks/bench_memory.py --device=cuda --resolution=512 --batch=32

Each way is a process of its own. The peak of the process (on a GPU: of the tensors) counts above what it held before
the step, when networks, optimisers and data exist: gradients, activations, what the backward passes need, and Adam's
means, which the step makes. `reference` is RAYCOND_OPS=reference, one operation of PyTorch for each step of an op's
definition: so the released code computes if its kernels are not compiled.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
from timing import MEMORY_SCRIPT, ROOT, Session, examples, network, run_script, session

from training.presets import PRESETS

SCRIPT = MEMORY_SCRIPT + """
import sys
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
WAYS = {                                # name -> RAYCOND_OPS, options of the training run
    "as it is":                 ("auto", {}),
    "reference":                ("reference", {}),
    "checkpoint-activations":   ("auto", dict(checkpoint_activations=True)),
}


@click.command(epilog=examples(__doc__))
@network([name for name, row in PRESETS.items() if row.rays], "raycond2", resolution=64, batch=4)
@click.option("--batch-gpu", type=int, help="Images in a pass  [default: all]")
@click.option("--phases", metavar="A,B", help="Such as Gmain,Dreg  [default: all]")
@session(rounds=1, seconds=600)
def main(run: Session, cfg: str, resolution: int, batch: int, cbase: int | None, cmax: int | None,
         batch_gpu: int | None, phases: str | None) -> None:
    """Print a row per way: the largest peak and those of the phases. The third way only if there is time."""
    begin = run.left
    for count, (way, (mode, options)) in enumerate(WAYS.items()):
        if count == 2 and run.left < (begin - run.left) / 2:
            print(f"{way}: not measured (time)")
            break
        script = SCRIPT.format(folder=str(ROOT / "benchmarks"), device=str(run.device), threads=run.threads, cfg=cfg,
                               resolution=resolution, batch=batch, batch_gpu=batch_gpu,
                               options=dict(options, cbase=cbase, cmax=cmax), phases=phases and phases.split(","))
        peaks = run_script(script, dict(RAYCOND_OPS=mode))
        run.keep(dict(way=way, network=cfg, resolution=resolution, batch=batch, device=str(run.device),
                      threads=run.threads, peak_mb=f"{max(peaks.values()) / 1e6:.0f}",
                      **{f"{name}_mb": f"{peak / 1e6:.0f}" for name, peak in peaks.items()}))


if __name__ == "__main__":
    main()
