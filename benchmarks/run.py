"""All benchmarks within the time there is, and a table of targets and results at the end.

    python benchmarks/run.py --device=cpu --minutes=5
    python benchmarks/run.py --device=cuda --minutes=8 --csv-dir=benchmarks         # keeps the results in benchmarks/*.csv, too
    python benchmarks/run.py --only=training,memory --minutes=10

Each benchmark is a process of its own, whose command is printed first and runs alone as well. It is given a share of the time: with
more time come more rounds. Short ones go first. One that takes too long is stopped; what it had measured by then counts, the rest is
"not measured (time)". The exit code is 1 where one failed.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import click
import torch
from results import append_rows
from targets import CPU_JOBS, GPU_JOBS, Job, Rows, Verdict
from timing import examples

FOLDER = os.path.dirname(os.path.abspath(__file__))
OWN_SHARE = 0.8                          # of a job's time that its script is told of; the rest is its start and the end of its last round
PATIENCE = 4                             # times what a job needs on idle cores, before it is stopped; where cores are busy the last ones get less
START_S = 4                              # about what a script takes until it measures
NO_TIME = "not measured (time)"
FAILED = "failed"


class Outcome:
    """What came out of a job: its rows, and why there are no more."""

    def __init__(self, rows: Rows, reason: str = ""):
        self.rows, self.reason = rows, reason


def run_job(job: Job, device: str, threads: int, tiny: bool, allowed_s: float, timeout_s: float) -> Outcome:
    """Runs the script, which prints what it finds; never longer than `timeout_s`."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.csv")
        args = [*job.args, *(job.tiny if tiny else ()), f"--device={device}", f"--threads={threads}",
                f"--seconds={max(allowed_s * OWN_SHARE - START_S, 1):.0f}"]
        print(f"$ python benchmarks/{job.script} {shlex.join(args)}", flush=True)
        process = subprocess.Popen([sys.executable, os.path.join(FOLDER, job.script), *args, f"--csv={path}"], start_new_session=True)
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
    """Ends the script with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_rows(path: str) -> Rows:
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run_jobs(jobs: list[Job], device: str, threads: int, tiny: bool, seconds: float, csv_dir: str | None) -> dict[str, Outcome]:
    """One after the other, those first that give a line for the least time: name -> outcome. Time that a job leaves goes to those that follow."""
    end = time.monotonic() + seconds
    jobs = sorted(jobs, key=lambda job: job.least_s / len(job.lines))
    outcomes = {}
    for index, job in enumerate(jobs):
        left = end - time.monotonic()
        later = sum(other.least_s for other in jobs[index + 1:])
        allowed_s = left * job.least_s / (job.least_s + later)
        if left < 2 * START_S:
            outcomes[job.name] = Outcome([], NO_TIME)
            continue
        print(f"\n[{seconds - left:.0f} s of {seconds:.0f} s] {job.name}: about {allowed_s:.0f} s", flush=True)
        timeout_s = min(max(job.least_s * PATIENCE, left - later), left)
        outcome = outcomes[job.name] = run_job(job, device, threads, tiny, allowed_s, timeout_s)
        if outcome.reason:
            print(outcome.reason, flush=True)
        if csv_dir is not None and outcome.rows:
            append_rows(os.path.join(csv_dir, job.script.removeprefix("bench_").removesuffix(".py") + ".csv"), outcome.rows)
    return outcomes


def table_of(jobs: list[Job], outcomes: dict[str, Outcome], otherwise: str, tiny: bool) -> list[tuple[str, ...]]:
    """work, target, measured, met?, note. `otherwise`: what is said of jobs that were not to run."""
    table = []
    for job in jobs:
        outcome = outcomes.get(job.name, Outcome([], otherwise))
        for line in job.lines:
            try:
                verdict = line.judge(outcome.rows)
            except KeyError:
                verdict = Verdict(outcome.reason or "not measured", None)
            met = "" if verdict.met is None else "(tiny)" if tiny else "yes" if verdict.met else "no"
            table.append((line.work, line.target, verdict.measured, met, verdict.note))
    return table


def print_table(rows: list[tuple[str, ...]]) -> None:
    """In Markdown, columns aligned."""
    rows = [("work", "target", "measured", "met?", "note"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for index, row in enumerate(rows):
        print("| " + " | ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "| --- |")


def parse_only(text: str | None) -> set[str]:
    """--only: names of jobs; all of them where it was not given."""
    known = [job.name for job in (*CPU_JOBS, *GPU_JOBS)]
    names = known if text is None else text.split(",")
    for name in names:
        if name not in known:
            raise click.UsageError(f"--only={text}: there is no {name!r}; there are {', '.join(known)}")
    return set(names)


@click.command(epilog=examples(__doc__))
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Whose lines are measured")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=5, show_default=True, help="All of it is done by then")
@click.option("--threads", default=2, show_default=True, help="CPU threads")
@click.option("--only", help=f"Some of {', '.join(job.name for job in (*CPU_JOBS, *GPU_JOBS))}", metavar="A,B")
@click.option("--csv-dir", help="Append the results to the CSV files in this folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.option("--tiny", is_flag=True, help="Sizes that only show that the scripts run: the table then judges nothing real")
@click.option("--rehearse", is_flag=True, help="Run the GPU's lines on the CPU, which shows the same of them; best with --tiny")
def main(device: str, minutes: float, threads: int, only: str | None, csv_dir: str | None, tiny: bool, rehearse: bool) -> None:
    """Run the benchmarks of a device and print targets and results."""
    begin, load = time.monotonic(), os.getloadavg()[0]
    names = parse_only(only)
    sections = {name: [job for job in jobs if job.name in names] for name, jobs in (("cpu", CPU_JOBS), ("cuda", GPU_JOBS))}
    section = "cuda" if rehearse else device
    reasons = {name: f"not asked for (--device={name})" for name in sections}
    if not torch.cuda.is_available():
        reasons["cuda"] = "unmeasured: no CUDA device"
    outcomes = {}
    if section == "cpu" or rehearse or torch.cuda.is_available():
        outcomes = run_jobs(sections[section], "cpu" if rehearse else device, threads, tiny, minutes * 60 - START_S, csv_dir)
    print(f"\n{device}, {threads} threads, torch {torch.__version__}, {time.monotonic() - begin:.0f} s; "
          f"before the start {load:.1f} processes were busy on {os.cpu_count()} cores\n")
    print_table([row for name, jobs in sections.items() for row in table_of(jobs, outcomes, reasons[name], tiny)])
    if any(outcome.reason.startswith(FAILED) for outcome in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
