"""Time of each phase of a training step relative to its bare convolutions and to the ops' definitions.

    python benchmarks/bench_training.py                                             # raycond2, 128 px, batch 4, CPU
    python benchmarks/bench_training.py --cfg=raycond3-t --resolution=64 --phases=Gboth --no-reference
    python benchmarks/bench_training.py --cfg=raycond2-tiny --resolution=32 --batch=16 --csv=benchmarks/training.csv
    python benchmarks/bench_training.py --device=cuda --resolution=512 --batch=32 --no-reference    # s/kimg of a GPU

A phase is what train.py runs: latents, forward and backward passes, the optimiser's step; random images stand for the
data. The fastest round counts, on all sides, since other work on the machine only adds time. `reference_s` is
RAYCOND_OPS=reference.

**How convolutions are counted.** While a phase runs, each of its calls of a convolution or of its gradient is
recorded (calls below autograd, including second derivatives). Each recorded call is then timed alone:
convolutions.py. So Greg and Dreg are compared with exactly the convolutions that their first and second backward
passes need: R1 needs D's forward pass, the gradient of each layer's input, and then gradients of both by weights and
features. The bare time contains nothing else: no matrix products of fully connected layers, no filters, no optimiser.

**Iteration.** The last row is one step in which all phases run, with the update of the averaged generator.
`other_share` is the share of the time that its bare convolutions do not explain. `s_per_kimg` weighs each phase by
how often it runs. `matrix_share` is the rate of the convolutions' arithmetic over that time, as a share of a large
matrix product's rate in the same run.
"""

from __future__ import annotations

import collections
import os
import statistics
from dataclasses import dataclass
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
import torch
from convolutions import BareConvolutions, Convolution
from timing import Session, examples, network, session, timed
from training_step import TrainingStep

from training.presets import PRESETS

MAIN_PHASES = ("Gmain", "Dmain")
WARM_UP_S = 1                            # a phase no longer than this is always warmed up


@dataclass(frozen=True)
class Measured:
    """One phase."""

    name: str
    counts: collections.Counter[Convolution]
    seconds: dict[str, float]           # "phase", "convolutions", "reference"
    rounds: int

    @property
    def flops(self) -> int:
        return sum(conv.flops * count for conv, count in self.counts.items())


def measure(run: Session, step: TrainingStep, name: str, bare: BareConvolutions, reference: bool,
            share: float) -> Measured:
    """In turns. The first run counts only if there is no time for another one."""
    seconds = run.left * share
    counts: collections.Counter[Convolution] = collections.Counter()
    first = timed(lambda: counts.update(step.recorded_run(name)), step.device)

    def reference_seconds() -> float:
        with mock.patch.dict(os.environ, RAYCOND_OPS="reference"):          # the ops look at it in each call
            return timed(lambda: step.run(name), step.device)

    measures = dict(phase=lambda: timed(lambda: step.run(name), step.device), convolutions=lambda: bare.seconds(counts))
    if reference:
        measures["reference"] = reference_seconds
    if first * 5 > max(seconds, WARM_UP_S * 5):
        found = {name: [first] if name == "phase" else [measure()] for name, measure in measures.items()}
    else:
        found = run.in_turns(measures, share=max(seconds - first, 0) / max(run.left, 1e-9))
    return Measured(name, counts, {name: min(values) for name, values in found.items()}, len(found["phase"]))


def row_of(phases: list[Measured], name: str, extra_s: float = 0.0) -> dict[str, object]:
    """What is kept of phases that follow one another. `extra_s` is added to the times of whole phases."""
    columns = set.intersection(*(set(phase.seconds) for phase in phases))
    seconds = {column: sum(phase.seconds[column] for phase in phases) + (extra_s if column != "convolutions" else 0)
               for column in columns}
    whole, part = seconds["phase"], seconds["convolutions"]
    row = dict(phase=name, phase_s=f"{whole:.4f}", convolutions_s=f"{part:.4f}", ratio=f"{whole / part:.3f}",
               gflop=f"{sum(phase.flops for phase in phases) / 1e9:.1f}", rounds=min(phase.rounds for phase in phases))
    if "reference" in seconds:
        row.update(reference_s=f"{seconds['reference']:.4f}", speedup=f"{seconds['reference'] / whole:.3f}")
    return dict(row, other_share=f"{1 - part / whole:.3f}") if len(phases) > 1 else row


def step_columns(step: TrainingStep, phases: list[Measured], average_s: float) -> dict[str, str]:
    """Of training as it goes on, each phase as often as it is due."""
    every = step.intervals
    per_step_s = sum(phase.seconds["phase"] / every[phase.name] for phase in phases) + average_s
    flops = sum(phase.flops / every[phase.name] for phase in phases)
    return dict(s_per_kimg=f"{per_step_s * 1000 / step.batch_size:.2f}",
                matrix_share=f"{flops / per_step_s / matrix_rate(step):.3f}")


def matrix_rate(step: TrainingStep) -> float:
    """Operations per second of a large matrix product in the precision of the step's half-precision layers."""
    on_cpu, options = step.device.type == "cpu", step.options
    dtype = torch.float32 if on_cpu or options.fp32 else torch.bfloat16 if options.bf16 else torch.float16
    size = 1024 if on_cpu else 8192
    a, b = (torch.randn([size, size], device=step.device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size ** 3 / statistics.median(timed(lambda: torch.mm(a, b), step.device, calls=5) for _ in range(3))


@click.command(epilog=examples(__doc__))
@network([name for name, row in PRESETS.items() if row.rays], "raycond2", resolution=128, batch=4)
@click.option("--batch-gpu", type=int, help="Images in a pass  [default: all]")
@click.option("--phases", metavar="A,B", help="Such as Gmain,Dmain; StyleGAN3 has Gboth, Dmain, Dreg  [default: all]")
@click.option("--bf16", is_flag=True, help="On a GPU, bfloat16 instead of float16")
@click.option("--reference/--no-reference", default=True, help="Also measure RAYCOND_OPS=reference  [default: yes]")
@session(rounds=3, seconds=600)
def main(run: Session, cfg: str, resolution: int, batch: int, cbase: int | None, cmax: int | None,
         batch_gpu: int | None, phases: str | None, bf16: bool, reference: bool) -> None:
    """Print a row per phase, then the rows of several together."""
    step = TrainingStep(cfg, resolution, batch, run.device, batch_gpu, bf16=bf16, cbase=cbase, cmax=cmax)
    names = phases.split(",") if phases else list(step.intervals)
    for name in names:
        if name not in step.intervals:
            raise click.UsageError(f"--phases={phases}: {name!r} is not a phase of --cfg={cfg}, "
                                   f"which has {', '.join(step.intervals)}")
    setting = dict(network=cfg, resolution=resolution, batch=batch, device=run.device_name, threads=run.threads)
    bare = BareConvolutions(run.device)
    done: list[Measured] = []
    for index, name in enumerate(names):
        done.append(measure(run, step, name, bare, reference, 1 / (len(names) - index)))
        run.keep(dict(setting, **row_of(done[-1:], name)))
        mains = [phase for phase in done if phase.name in MAIN_PHASES]
        if len(mains) == 2 and name in MAIN_PHASES:
            run.keep(dict(setting, **row_of(mains, "Gmain+Dmain")))
    if set(names) == set(step.intervals):
        step.update_average()
        average_s = timed(step.update_average, run.device)
        run.keep(dict(setting, **row_of(done, "iteration", average_s), **step_columns(step, done, average_s)))


if __name__ == "__main__":
    main()
