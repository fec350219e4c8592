"""The table of run.py: which script measures which line with which arguments, what is asked for, and how its rows are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

Rows = list[dict[str, str]]             # of a script's CSV


class Verdict(NamedTuple):
    """What the table says of a line."""

    measured: str
    met: bool | None = None             # None: nothing is promised.
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A line of the table. `judge` gets the rows of the script, in full or as far as it came, and raises KeyError where its row is missing."""

    work: str
    target: str
    judge: Callable[[Rows], Verdict]


@dataclass(frozen=True)
class Job:
    """One run of a script."""

    name: str                           # for --only
    script: str
    args: tuple[str, ...]
    tiny: tuple[str, ...]               # on top, for --tiny
    least_s: float                      # what one round takes on two idle cores, or on a GPU; time is shared out in proportion
    lines: tuple[Line, ...]


# ---------------------------------------------------------------------------------------------------------------------
# Judges.

def find(rows: Rows, **wanted: str) -> dict[str, str]:
    """The last row with these values. KeyError: there is none."""
    for row in reversed(rows):
        if all(row.get(key) == value for key, value in wanted.items()):
            return row
    raise KeyError(wanted)


NOISE = 0.95                            # a ratio of a whole to its parts below this says that the machine was busy, nothing else


def rounds(row: dict[str, str]) -> str:
    return f"{row['rounds']} round{'' if row['rounds'] == '1' else 's'}"


def at_most(ratio: float, limit: float) -> bool | None:
    """Is it? None where the whole took less than its parts, which only other work on the machine explains."""
    return None if ratio < NOISE else ratio <= limit


PASSES = "the rest: styles and rays, filters, activations, each one pass over memory"
CALLS = "the rest: some thousand calls of small operations"


def generator(limit: float) -> Callable[[Rows], Verdict]:
    """A forward pass at most `limit` times its bare convolutions."""
    def judge(rows: Rows) -> Verdict:
        row = find(rows)
        met = at_most(float(row["ratio"]), limit)
        return Verdict(f"{float(row['ratio']):.2f} x", met, f"{float(row['generator_s']):.2f} s, bare {float(row['convolutions_s']):.2f} s; {rounds(row)}"
                       + reason(met, PASSES))
    return judge


def reason(met: bool | None, text: str) -> str:
    return f"; {text}" if met is False else ""


def phase(name: str, limit: float, speedup: float | None = None) -> Callable[[Rows], Verdict]:
    """A phase at most `limit` times its bare convolutions and, where `speedup` is given, so many times faster than the reference path."""
    def judge(rows: Rows) -> Verdict:
        row = find(rows, phase=name)
        ratio = float(row["ratio"])
        measured, met, note = f"{ratio:.2f} x bare", at_most(ratio, limit), f"{float(row['phase_s']):.1f} s, bare {float(row['convolutions_s']):.1f} s"
        if speedup is not None:
            faster, reference_s = float(row["speedup"]), float(row["reference_s"])
            measured, met, note = f"{faster:.2f} x faster, {measured}", met and faster >= speedup, f"{note}, reference {reference_s:.1f} s"
            over = reference_s / float(row["convolutions_s"])
            note += reason(met, f"the reference path is {over:.2f} x bare" + (f": {speedup:g} x faster is less than bare" if over < speedup else f"; {PASSES}"))
        return Verdict(measured, met, f"{note}; {rounds(row)}")
    return judge


def overheads(rows: Rows) -> Verdict:
    row = find(rows, phase="iteration")
    ratio = float(row["ratio"])
    met = at_most(ratio, 1 / 0.6)
    return Verdict(f"{1 - 1 / ratio:.0%}", met, f"{float(row['phase_s']):.2f} s, bare {float(row['convolutions_s']):.2f} s; {rounds(row)}" + reason(met, CALLS))


def data_loading(rows: Rows) -> Verdict:
    slowest = min(rows, key=lambda row: float(row["worker_per_s"]), default=None)
    if slowest is None:
        raise KeyError("no rows")
    ratios = ", ".join(f"{row['kind']} {float(row['vs_pillow']):.2f}" for row in rows)
    per_s = float(slowest["worker_per_s"])
    return Verdict(f"{per_s:.0f} images/s or more per worker", per_s >= FAST_STEP_PER_S,
                   f"times Pillow's rate: {ratios}; a GPU's step at 90 s/kimg asks for {FAST_STEP_PER_S:.0f} images/s of all workers")


def imports(rows: Rows) -> Verdict:
    if not rows:
        raise KeyError("no rows")
    worst = max(float(row["ratio"]) for row in rows)
    ratios = ", ".join(f"{row['process']} {float(row['ratio']):.2f}" for row in rows)
    spare = sorted({name for row in rows for name in row["not_needed"].split()})
    return Verdict(f"{worst:.2f} x at worst", worst <= 1.3 and not spare, f"{ratios}; not needed: {', '.join(spare) or 'nothing'}")


def memory(rows: Rows) -> Verdict:
    ours, theirs = (find(rows, way=way) for way in ("as it is", "reference"))
    ratio = float(ours["peak_mb"]) / float(theirs["peak_mb"])
    checkpoints = next((row for row in rows if row["way"] == "checkpoint-activations"), None)
    note = f"{float(ours['peak_mb']):.0f} MB, reference path {float(theirs['peak_mb']):.0f} MB, " + (
        "--checkpoint-activations not measured (time)" if checkpoints is None else f"--checkpoint-activations {float(checkpoints['peak_mb']):.0f} MB")
    return Verdict(f"{ratio:.2f} x the reference path", ratio <= 1, note)


def kernels(rows: Rows) -> Verdict:
    """The worst share of the copy rate among the memory-bound cases of 100 MB and more."""
    large = [row for row in rows if row["bandwidth"] and float(row["mb"]) >= 100 and row["op"] != "copy" and row["path"] == "ours"]
    worst = min(large, key=lambda row: float(row["bandwidth"]), default=None)
    if worst is None:
        raise KeyError("no tensors of 100 MB")
    met = sum(float(row["bandwidth"]) >= 0.85 for row in large)
    return Verdict(f"{met} of {len(large)} cases at 85 % or more", met == len(large),
                   f"least: {worst['op']} {worst['direction']} {worst['dtype']} {worst['format']}, {float(worst['bandwidth']):.0%}")


def throughput(rows: Rows) -> Verdict:
    best = {}
    for row in rows:
        if row["images_per_s"]:
            best[row["batch"]] = max(best.get(row["batch"], (0.0, "")), (float(row["images_per_s"]), f"{row['dtype']} {row['way']}"))
    if not best:
        raise KeyError("no rows")
    return Verdict(", ".join(f"batch {batch}: {rate:.1f} images/s" for batch, (rate, _) in best.items()), None,
                   "fastest: " + ", ".join(way for _, way in best.values()))


def gpu_training(rows: Rows) -> Verdict:
    row = find(rows, phase="iteration")
    phases = ", ".join(f"{r['phase']} {float(r['phase_s']):.3f} s" for r in rows if "+" not in r["phase"] and r["phase"] != "iteration")
    return Verdict(f"{float(row['s_per_kimg']):.1f} s/kimg", None, f"{phases}; {float(row['matrix_share']):.0%} of the matrix rate")


# ---------------------------------------------------------------------------------------------------------------------
# Lines.

FAST_STEP_PER_S = 1000 / 90.25          # StyleGAN3-T, 512 px, on one A100, as published
SMALL_G = ("--resolution=16", "--cbase=256", "--cmax=16", "--rounds=1")
SMALL_IMAGES = ("--resolution=16", "--cbase=256", "--cmax=16", "--ways=eager,graph", "--batches=1,2")
SMALL_STEP = ("--resolution=8", "--batch=4", "--cbase=64", "--cmax=8", "--rounds=1")

CPU_JOBS = (
    Job("generator-512", "bench_generator.py", ("--resolution=512", "--rounds=9"), SMALL_G, 16, (
        Line("raycond2 G, 512 px, batch 1", "at most 1.3 x bare", generator(1.3)),)),
    Job("generator-128", "bench_generator.py", ("--resolution=128", "--rounds=9"), SMALL_G, 10, (
        Line("raycond2 G, 128 px, batch 1", "at most 1.25 x bare", generator(1.25)),)),
    Job("generator3-64", "bench_generator.py", ("--cfg=raycond3-t", "--resolution=64"), SMALL_G, 15, (
        Line("raycond3-t G, 64 px, batch 1", "at most 2 x bare", generator(2)),)),
    Job("generator3-256", "bench_generator.py", ("--cfg=raycond3-t", "--resolution=256"), SMALL_G, 25, (
        Line("raycond3-t G, 256 px, batch 1", "at most 2 x bare", generator(2)),)),
    Job("demo", "bench_training.py", ("--cfg=raycond2-tiny", "--resolution=32", "--batch=16", "--no-reference", "--rounds=9"), SMALL_STEP, 18, (
        Line("demo preset, 32 px, batch 16: all phases", "other than convolutions under 40 %", overheads),)),
    Job("data", "bench_data.py", (), ("--resolution=32", "--images=2"), 8, (
        Line("data loading, 512 px PNG in zip", "measured; never the bottleneck", data_loading),)),
    Job("import", "bench_import.py", (), ("--resolution=16", "--cbase=256", "--commands=train.py", "--rounds=1"), 26, (
        Line("import, load of a 512 px snapshot", "at most 1.3 x torch; nothing spare", imports),)),
    Job("training", "bench_training.py", ("--resolution=128", "--batch=4", "--phases=Gmain,Dmain,Greg,Dreg"), SMALL_STEP, 110, (
        Line("raycond2 128 px, batch 4: Gmain + Dmain", "2 x faster than reference, at most 1.6 x bare", phase("Gmain+Dmain", 1.6, 2)),
        Line("raycond2 128 px, batch 4: Greg", "the same", phase("Greg", 1.6, 2)),
        Line("raycond2 128 px, batch 4: Dreg", "the same", phase("Dreg", 1.6, 2)))),
    Job("memory", "bench_memory.py", ("--phases=Dreg",), (*SMALL_STEP[:-1], "--cfg=raycond2-tiny"), 20, (
        Line("peak memory of a training step: raycond2, 64 px, batch 4, Dreg", "at most the reference path's", memory),)),
    Job("training3", "bench_training.py", ("--cfg=raycond3-t", "--resolution=64", "--batch=4", "--phases=Gboth", "--no-reference"), SMALL_STEP, 55, (
        Line("raycond3-t 64 px, batch 4: Gmain", "at most 2 x bare", phase("Gboth", 2)),)),
)

GPU_JOBS = (
    Job("kernels", "bench_ops.py", ("--large", "--backward", "--compiled"), ("--sizes=1x4x16", "--repeats=1"), 90, (
        Line("kernels, forward and backward, 100 MB and more", "85 % or more of the copy rate", kernels),)),
    Job("images", "bench_throughput.py", ("--cfg=raycond2", "--resolution=512"), SMALL_IMAGES, 110, (
        Line("raycond2 G, 512 px, images/s", "measured", throughput),)),
    Job("images3", "bench_throughput.py", ("--cfg=raycond3-t", "--resolution=512"), SMALL_IMAGES, 130, (
        Line("raycond3-t G, 512 px, images/s", "measured", throughput),)),
    Job("training-512", "bench_training.py", ("--resolution=512", "--batch=32", "--no-reference"), SMALL_STEP, 90, (
        Line("raycond2 512 px, batch 32, one GPU", "measured (StyleGAN3-T on an A100: 90.25 s/kimg)", gpu_training),)),
)
