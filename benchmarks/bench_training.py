"""Time of each phase of a training step against its bare convolutions, and against the ops' definitions (RAYCOND_OPS=reference).

    python benchmarks/bench_training.py                                             # raycond2, 128 px, batch 4, CPU
    python benchmarks/bench_training.py --cfg=raycond3-t --resolution=64 --phases=Gboth --no-reference
    python benchmarks/bench_training.py --cfg=raycond2-tiny --resolution=32 --batch=16 --csv=benchmarks/training.csv
    python benchmarks/bench_training.py --device=cuda --resolution=512 --batch=32 --no-reference            # s/kimg of a GPU

A phase is what train.py runs: latents, forward and backward passes, the optimiser's step; random images stand for the data. Of several
rounds the fastest counts, on all sides, as other work on the machine only ever adds.

**How convolutions are counted.** Each call of a convolution or of its gradient that the phase makes is recorded while it runs (the
calls below autograd, second derivatives included), and each recorded one is timed alone: convolutions.py. So Greg and Dreg are
compared with just the convolutions that their first and second backward passes ask for: R1 needs D's forward pass, the gradient of
each layer's input, and then gradients of both by weights and features. Nothing else is in the bare time: no matrix products of
fully connected layers, no filters, no optimiser.

**Iteration.** The last row is one step in which all phases run, with the update of the averaged generator. `other_share` is the share
of the time that its bare convolutions do not explain. `s_per_kimg` weighs each phase by how often it runs; `matrix_share` is the rate of
the convolutions' arithmetic over that time, as a share of a large matrix product's rate in the same run.
"""

from __future__ import annotations

import collections
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
import torch
from convolutions import BareConvolutions, Convolution
from results import save_rows
from timing import device_name, examples, in_turns, ops_mode, prepare, timed
from training_step import TrainingStep

from training.presets import PRESETS

MAIN_PHASES = ("Gmain", "Dmain")
WARM_UP_S = 1                            # a phase as short as this is warmed up in any case


class PhaseBench:
    """One phase: its time, that of its bare convolutions, and that of the reference path."""

    def __init__(self, step: TrainingStep, name: str, bare: BareConvolutions, reference: bool):
        self.step, self.name, self.bare = step, name, bare
        self.reference = reference
        self.counts: collections.Counter[Convolution] = collections.Counter()
        self.seconds: dict[str, float] = {}
        self.rounds = 0

    def measure(self, rounds: int, seconds: float) -> None:
        """In turns. The first run of all counts only if time is left for no other."""
        begin = time.perf_counter()
        first = timed(self._record, self.step.device)
        measures = dict(phase=lambda: timed(lambda: self.step.run(self.name), self.step.device), convolutions=lambda: self.bare.seconds(self.counts))
        if self.reference:
            measures["reference"] = self._reference_seconds
        if first * 5 > max(seconds, WARM_UP_S * 5):
            measures["phase"] = lambda: first
            rounds = 1
        results = in_turns(measures, rounds, seconds - (time.perf_counter() - begin))
        self.rounds = len(results["phase"])
        self.seconds = {name: min(values) for name, values in results.items()}

    def _record(self) -> None:
        self.counts = self.step.recorded_run(self.name)

    def _reference_seconds(self) -> float:
        with ops_mode("reference"):
            return timed(lambda: self.step.run(self.name), self.step.device)


def row_of(name: str, seconds: dict[str, float], flops: int, rounds: int) -> dict[str, object]:
    """What is kept of a phase, or of several together."""
    row = dict(phase=name, phase_s=f"{seconds['phase']:.4f}", convolutions_s=f"{seconds['convolutions']:.4f}",
               ratio=f"{seconds['phase'] / seconds['convolutions']:.3f}", gflop=f"{flops / 1e9:.1f}", rounds=rounds)
    if "reference" in seconds:
        row.update(reference_s=f"{seconds['reference']:.4f}", speedup=f"{seconds['reference'] / seconds['phase']:.3f}")
    return row


def total_of(name: str, benches: list[PhaseBench], extra_s: float = 0) -> dict[str, object]:
    """Phases after one another. A column that one of them lacks is left out."""
    columns = set.intersection(*(set(bench.seconds) for bench in benches))
    seconds = {column: sum(bench.seconds[column] for bench in benches) + (extra_s if column != "convolutions" else 0) for column in columns}
    row = row_of(name, seconds, sum(_flops(bench.counts) for bench in benches), min(bench.rounds for bench in benches))
    return dict(row, other_share=f"{1 - seconds['convolutions'] / seconds['phase']:.3f}")


def step_columns(step: TrainingStep, benches: list[PhaseBench], average_s: float) -> dict[str, str]:
    """Of training as it goes on, each phase as often as it is due."""
    every = step.intervals
    per_step_s = sum(bench.seconds["phase"] / every[bench.name] for bench in benches) + average_s
    flops = sum(_flops(bench.counts) / every[bench.name] for bench in benches)
    return dict(s_per_kimg=f"{per_step_s * 1000 / step.batch_size:.2f}", matrix_share=f"{flops / per_step_s / matrix_rate(step):.3f}")


def matrix_rate(step: TrainingStep) -> float:
    """Operations per second of a large matrix product in the precision of the step's half-precision layers."""
    dtype = torch.float32 if step.device.type == "cpu" or step.options.fp32 else torch.bfloat16 if step.options.bf16 else torch.float16
    size = 8192 if step.device.type == "cuda" else 1024
    a, b = (torch.randn([size, size], device=step.device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size ** 3 / statistics.median(timed(lambda: torch.mm(a, b), step.device, calls=5) for _ in range(3))


def _flops(counts: collections.Counter[Convolution]) -> int:
    return sum(conv.flops * count for conv, count in counts.items())


def parse_phases(text: str | None, step: TrainingStep) -> list[str]:
    """--phases, checked."""
    names = list(step.intervals) if text is None else text.split(",")
    for name in names:
        if name not in step.intervals:
            raise click.UsageError(f"--phases={text}: {name!r} is no phase of --cfg={step.options.cfg}, which has {', '.join(step.intervals)}")
    return names


@click.command(epilog=examples(__doc__))
@click.option("--cfg", type=click.Choice([name for name, row in PRESETS.items() if row.rays]), default="raycond2", show_default=True)
@click.option("--resolution", default=128, show_default=True, help="Of the images [px]")
@click.option("--batch", default=4, show_default=True, help="Images in a step")
@click.option("--batch-gpu", type=int, help="Images in a pass  [default: all]")
@click.option("--cbase", type=int, help="Channels at resolution r are this / r  [default: as the preset]")
@click.option("--cmax", type=int, help="Channels at most  [default: as the preset]")
@click.option("--phases", metavar="A,B", help="Such as Gmain,Dmain; StyleGAN3 has Gboth, Dmain, Dreg  [default: all]")
@click.option("--bf16", is_flag=True, help="bfloat16 where float16 is the rule on a GPU")
@click.option("--reference/--no-reference", default=True, help="Measure RAYCOND_OPS=reference, too  [default: yes]")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--rounds", default=3, show_default=True, help="Each measures everything in turns; the fastest counts")
@click.option("--seconds", default=600.0, show_default=True, help="About how long to measure; at least one round of each phase")
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
def main(cfg: str, resolution: int, batch: int, batch_gpu: int | None, cbase: int | None, cmax: int | None, phases: str | None, bf16: bool, reference: bool,
         device: str, threads: int, rounds: int, seconds: float, csv_path: str | None) -> None:
    """Print a row per phase, then the rows of several together."""
    begin = time.perf_counter()
    place = prepare(device, threads)
    step = TrainingStep(cfg, resolution, batch, place, batch_gpu, bf16=bf16, cbase=cbase, cmax=cmax)
    names = parse_phases(phases, step)
    setting = dict(network=cfg, resolution=resolution, batch=batch, device=device_name(place), threads=threads)
    bare = BareConvolutions(place)
    benches = []

    def keep(row: dict[str, object]) -> None:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if csv_path is not None:
            save_rows(csv_path, [dict(setting, **row)])

    for index, name in enumerate(names):
        left = seconds - (time.perf_counter() - begin)
        bench = PhaseBench(step, name, bare, reference)
        bench.measure(rounds, left / (len(names) - index))
        keep(row_of(name, bench.seconds, _flops(bench.counts), bench.rounds))
        benches.append(bench)
        mains = [bench for bench in benches if bench.name in MAIN_PHASES]
        if len(mains) == 2 and name in MAIN_PHASES:
            keep(total_of("Gmain+Dmain", mains))
    if set(names) == set(step.intervals):
        step.update_average()
        average_s = timed(step.update_average, place)
        keep(dict(total_of("iteration", benches, average_s), **step_columns(step, benches, average_s)))


if __name__ == "__main__":
    main()
