"""All benchmarks within the time there is, and a table of the results at the end.

    python benchmarks/run.py --device=cpu --minutes=5
    python benchmarks/run.py --device=cuda --minutes=8 --csv-dir=benchmarks         # appends to benchmarks/*.csv
    python benchmarks/run.py --only=training,memory --minutes=10

Each benchmark is a process of its own. Its command is printed first and also runs alone. It gets a share of the time:
more time means more rounds. Short ones go first. One that takes too long is stopped: what it had measured by then
counts, the rest is "not measured (time)". The exit code is 1 if one failed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import click
import torch
from results import append_rows, read_rows
from timing import examples

FOLDER = os.path.dirname(os.path.abspath(__file__))
OWN_SHARE = 0.8                         # of a job's time, for its --seconds; the rest is its start and its last round
PATIENCE = 4                            # a job is stopped after this many times what it needs on idle cores
START_S = 4                             # about what a script takes until it measures
NO_TIME = "not measured (time)"
FAILED = "failed"

Rows = list[dict[str, str]]             # of a script's CSV


@dataclass(frozen=True)
class Job:
    """One run of a script, and the lines of the table that its rows become."""

    name:       str                                 # for --only
    command:    str                                 # script and arguments
    tiny:       str                                 # more arguments, for --tiny
    least_s:    float                               # of one round, on two idle cores or a GPU; its share of the time
    work:       str                                 # these three with the columns of a row in braces
    target:     str
    measured:   str
    pick:       Callable[[Rows], Rows] = list       # the rows that are shown


SMALL_G = "--resolution=16 --cbase=256 --cmax=16 --rounds=1"
SMALL_STEP = "--resolution=8 --batch=4 --cbase=64 --cmax=8 --rounds=1"
BARE = "{ratio} x bare ({generator_s} s, bare {convolutions_s} s, {rounds} rounds)"
PHASE = "{ratio} x bare ({phase_s} s, bare {convolutions_s} s, {rounds} rounds)"

CPU_JOBS = (
    Job("generator-512", "bench_generator.py --resolution=512 --rounds=9", SMALL_G, 16,
        "raycond2 G, 512 px, batch 1", "at most 1.3 x bare", BARE),
    Job("generator-128", "bench_generator.py --resolution=128 --rounds=9", SMALL_G, 10,
        "raycond2 G, 128 px, batch 1", "at most 1.25 x bare", BARE),
    Job("generator3-64", "bench_generator.py --cfg=raycond3-t --resolution=64", SMALL_G, 15,
        "raycond3-t G, 64 px, batch 1", "at most 2 x bare", BARE),
    Job("generator3-256", "bench_generator.py --cfg=raycond3-t --resolution=256", SMALL_G, 25,
        "raycond3-t G, 256 px, batch 1", "at most 2 x bare", BARE),
    Job("demo", "bench_training.py --cfg=raycond2-tiny --resolution=32 --batch=16 --no-reference --rounds=9",
        SMALL_STEP, 18, "demo preset, 32 px, batch 16: all phases", "under 0.4 not convolutions",
        "{other_share} not convolutions; " + PHASE, lambda rows: [row for row in rows if row["phase"] == "iteration"]),
    Job("data", "bench_data.py", "--resolution=32 --images=2", 8,
        "data loading, 512 px PNG in zip, {kind}", "11 images/s of all workers (a GPU's step at 90 s/kimg)",
        "{worker_per_s} images/s per worker; in one process {vs_pillow} x Pillow's rate"),
    Job("import", "bench_import.py", "--resolution=16 --cbase=256 --commands=train.py --rounds=1", 26,
        "import (legacy: and load), {process}", "at most 1.3 x torch; nothing spare",
        "{ratio} x torch; spare: {not_needed}"),
    Job("training", "bench_training.py --resolution=128 --batch=4 --phases=Gmain,Dmain,Greg,Dreg", SMALL_STEP, 110,
        "raycond2 128 px, batch 4: {phase}", "2 x faster than reference, at most 1.6 x bare",
        "{speedup} x faster than reference ({reference_s} s), " + PHASE),
    Job("memory", "bench_memory.py --phases=Dreg", SMALL_STEP + " --cfg=raycond2-tiny", 20,
        "peak memory, raycond2, 64 px, batch 4, Dreg: {way}", "at most the reference path's", "{peak_mb} MB"),
    Job("training3", "bench_training.py --cfg=raycond3-t --resolution=64 --batch=4 --phases=Gboth --no-reference",
        SMALL_STEP, 55, "raycond3-t 64 px, batch 4: {phase}", "at most 2 x bare", PHASE),
)
GPU_JOBS = (
    Job("kernels", "bench_ops.py --large --backward --compiled", "--sizes=1x4x16 --rounds=1", 90,
        "{op} {direction} {dtype} {format}, {mb} MB", "0.85 or more of the copy rate", "{bandwidth}: one of five lowest",
        lambda rows: sorted((row for row in rows if row["bandwidth"] and row["path"] == "ours"),
                            key=lambda row: float(row["bandwidth"]))[:5]),
    *(Job(f"images-{cfg}-{batch}-{half}",
          f"bench_generator.py --cfg={cfg} --batch={batch} --half={half} --ways=eager,compile,graph",
          SMALL_G + " --ways=eager,graph", 60, f"{cfg} G, 512 px, batch {batch}, {half}, {{way}}", "measured",
          "{images_per_s} images/s {reason}")
      for cfg in ("raycond2", "raycond3-t") for batch in (1, 32) for half in ("fp16", "bf16")),
    Job("training-512", "bench_training.py --resolution=512 --batch=32 --no-reference", SMALL_STEP, 90,
        "raycond2 512 px, batch 32, one GPU: {phase}", "StyleGAN3-T on an A100: 90.25 s/kimg",
        "{phase_s} s; training: {s_per_kimg} s/kimg, {matrix_share} of the matrix rate"),
)


class Outcome:
    """What came of a job: its rows, and why there are no more."""

    def __init__(self, rows: Rows, reason: str = ""):
        self.rows, self.reason = rows, reason


def run_job(job: Job, device: str, threads: int, tiny: bool, allowed_s: float, timeout_s: float) -> Outcome:
    """Runs the script, which prints what it finds. Never takes longer than `timeout_s`."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.csv")
        script, *args = shlex.split(f"{job.command} {job.tiny if tiny else ''}")
        seconds = max(allowed_s * OWN_SHARE - START_S, 1)
        args += [f"--device={device}", f"--threads={threads}", f"--seconds={seconds:.0f}"]
        print(f"$ python benchmarks/{script} {shlex.join(args)}", flush=True)
        command = [sys.executable, os.path.join(FOLDER, script), *args, f"--csv={path}"]
        process = subprocess.Popen(command, start_new_session=True)
        reason = ""
        try:
            code = process.wait(timeout_s)
            reason = f"{FAILED}: its command ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            reason = NO_TIME
        finally:
            stop(process)
        return Outcome(read_rows(path), reason)


def stop(process: subprocess.Popen) -> None:
    """Ends the script and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_jobs(jobs: list[Job], device: str, threads: int, tiny: bool, seconds: float,
             csv_dir: str | None) -> dict[str, Outcome]:
    """One after the other, short ones first: name -> outcome. Time that a job leaves goes to the next ones."""
    end = time.monotonic() + seconds
    jobs = sorted(jobs, key=lambda job: job.least_s)
    outcomes = {}
    for index, job in enumerate(jobs):
        left = end - time.monotonic()
        later = sum(other.least_s for other in jobs[index + 1:])
        if left < 2 * START_S:
            outcomes[job.name] = Outcome([], NO_TIME)
            continue
        allowed_s = left * job.least_s / (job.least_s + later)
        print(f"\n[{seconds - left:.0f} s of {seconds:.0f} s] {job.name}: about {allowed_s:.0f} s", flush=True)
        outcome = run_job(job, device, threads, tiny, allowed_s, min(max(job.least_s * PATIENCE, left - later), left))
        outcomes[job.name] = outcome
        print(outcome.reason, flush=True)
        if csv_dir is not None and outcome.rows:
            name = job.command.split()[0].removeprefix("bench_").removesuffix(".py")
            append_rows(os.path.join(csv_dir, f"{name}.csv"), outcome.rows)
    return outcomes


def table_of(jobs: list[Job], outcomes: dict[str, Outcome]) -> list[tuple[str, str, str]]:
    """(work, target, measured): a line for each row that a job picks, and one for what is missing."""
    table = []
    for job in jobs:
        outcome = outcomes[job.name]
        rows = job.pick(outcome.rows)
        table += [tuple(text.format_map(row) for text in (job.work, job.target, job.measured)) for row in rows]
        if outcome.reason or not rows:
            table.append((job.name, job.target, outcome.reason or "not measured"))
    return table


def print_table(rows: list[tuple[str, str, str]]) -> None:
    """In Markdown, with aligned columns."""
    rows = [("work", "target", "measured"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    rows.insert(1, tuple("-" * width for width in widths))
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")


@click.command(epilog=examples(__doc__))
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What is measured")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=5, show_default=True, help="All is done by then")
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--only", help="Some of the benchmarks  [default: all of the device]", metavar="A,B")
@click.option("--csv-dir", help="Append the results to the CSV files in this folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.option("--tiny", is_flag=True, help="Sizes that only show that the scripts run: the numbers mean nothing")
@click.option("--rehearse", is_flag=True, help="Run the GPU's benchmarks on the CPU; best with --tiny")
def main(device: str, minutes: float, threads: int, only: str | None, csv_dir: str | None, tiny: bool,
         rehearse: bool) -> None:
    """Run the benchmarks of a device and print targets and results."""
    begin, load = time.monotonic(), os.getloadavg()[0]
    known = {job.name: job for job in (GPU_JOBS if device == "cuda" or rehearse else CPU_JOBS)}
    for name in only.split(",") if only else []:
        if name not in known:
            raise click.UsageError(f"--only={only}: there is no {name!r} for this device; there are {', '.join(known)}")
    if device == "cuda" and not rehearse and not torch.cuda.is_available():
        raise click.UsageError("--device=cuda: PyTorch finds no CUDA device; --rehearse runs the same on the CPU")
    jobs = [known[name] for name in (only.split(",") if only else known)]
    outcomes = run_jobs(jobs, "cpu" if rehearse else device, threads, tiny, minutes * 60 - START_S, csv_dir)
    print(f"\n{device}, {threads} threads, torch {torch.__version__}, {time.monotonic() - begin:.0f} s; "
          f"before the start {load:.1f} processes were busy on {os.cpu_count()} cores\n")
    print_table(table_of(jobs, outcomes))
    if any(outcome.reason.startswith(FAILED) for outcome in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
