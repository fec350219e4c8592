"""How the scripts here measure: calls in turns within one run, and peaks of memory in processes of their own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import results
import torch

from torch_utils import memory

ROOT = Path(__file__).parents[1]
CUDA_CALLS = 10                         # between two synchronisations, for short calls

# The beginning of a script for run_script. Where Linux allows it, forget_peak() makes VmHWM what the process holds now.
MEMORY_SCRIPT = """
import json, time
def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(field))
def forget_peak():
    try:
        with open('/proc/self/clear_refs', 'w') as stream:
            stream.write('5')
    except OSError:
        pass
"""


class Session:
    """What all scripts have in common: the device, the time that is left, and where results go."""

    def __init__(self, device: str, threads: int, rounds: int, seconds: float, csv_path: str | None):
        self.threads, self.rounds, self.csv_path = threads, rounds, csv_path
        self.end = time.perf_counter() + seconds
        self.device = prepare(device, threads)
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"cpu x{threads}"

    @property
    def left(self) -> float:
        """Seconds until the measuring should be over."""
        return self.end - time.perf_counter()

    def in_turns(self, measures: Mapping[Any, Callable[[], Any]], share: float = 1.0,
                 at_least: int = 1) -> dict[Any, list]:
        """Calls each measure once per round, so that other work on the machine affects all: name -> its results.

        `share` is that of the time that is left. After `at_least` rounds, none begins that would probably take longer.
        """
        begin, allowed = time.perf_counter(), self.left * share
        found = {name: [] for name in measures}
        for done in range(1, self.rounds + 1):
            for name, measure in measures.items():
                found[name].append(measure())
            spent = time.perf_counter() - begin
            if done >= at_least and spent + spent / done > allowed:
                break
        return found

    def keep(self, *rows: dict[str, Any]) -> None:
        """Prints rows and appends them to the file of --csv."""
        results.keep(self.csv_path, *rows)


def session(rounds: int, seconds: float, threads: int = 2) -> Callable:
    """Gives a command the options that all scripts share, with these defaults, and calls it with a Session."""
    def decorate(main: Callable) -> Callable:
        @click.option("--device", default="cpu", show_default=True)
        @click.option("--threads", default=threads, show_default=True, help="CPU threads")
        @click.option("--rounds", default=rounds, show_default=True, help="Each measures everything once, in turns")
        @click.option("--seconds", default=float(seconds), show_default=True, help="About how long to measure")
        @click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
        @functools.wraps(main)
        def run(device: str, threads: int, rounds: int, seconds: float, csv_path: str | None, **options: Any) -> None:
            main(Session(device, threads, rounds, seconds, csv_path), **options)
        return run
    return decorate


def network(cfgs: list[str], cfg: str, resolution: int, batch: int) -> Callable:
    """The options that say which network is measured, with these defaults."""
    def decorate(command: Callable) -> Callable:
        for option in (
            click.option("--cmax", type=int, help="Channels at most  [default: as the preset]"),
            click.option("--cbase", type=int, help="Channels at resolution r are this / r  [default: as the preset]"),
            click.option("--batch", default=batch, show_default=True, help="Images in a pass or step"),
            click.option("--resolution", default=resolution, show_default=True, help="Of the images [px]"),
            click.option("--cfg", type=click.Choice(cfgs), default=cfg, show_default=True),
        ):
            command = option(command)
        return command
    return decorate


def timed(function: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of one call; `calls` are made between the two looks at the clock."""
    _synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    _synchronize(device)
    return (time.perf_counter() - begin) / calls


def calls_on(device: torch.device) -> int:
    """Calls to time at once. On a GPU they follow each other as in a network."""
    return CUDA_CALLS if device.type == "cuda" else 1


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_script(script: str, env: Mapping[str, str] | None = None) -> dict:
    """Runs Python source in a new process that finds this project. Returns the JSON object on its last line."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the measured process ended with {result.returncode}: {result.stderr.strip()[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def examples(text: str) -> str:
    """The commands in a script's docstring, for the end of its --help."""
    shown = (line[2:] for line in text.splitlines() if line.startswith(("    python ", "    RAYCOND_OPS=")))
    return "\n".join(["\b", "Examples:", *shown])


def prepare(device: str, threads: int) -> torch.device:
    """Sets this process up for measuring, as train.py does for training."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(threads)
    memory.keep_freed()                 # as train.py and gen_images.py do
    torch.backends.cudnn.benchmark = True
    return torch.device(device)
