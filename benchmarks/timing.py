"""How the scripts here measure: calls in turns within one run, medians, and peaks of memory in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from torch_utils import memory

ROOT = Path(__file__).parents[1]
CUDA_CALLS = 10                         # between two synchronisations where single calls are short

# What a measured process starts with: its high-water mark set back to what it holds now, where Linux allows that.
MEMORY_SCRIPT = """
def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(field))
def forget_peak():
    try:
        with open('/proc/self/clear_refs', 'w') as stream:
            stream.write('5')
    except OSError:
        pass
"""


def synchronize(device: torch.device) -> None:
    """Waits for the GPU, if it is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of one call; `calls` are made between the two looks at the clock."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - begin) / calls


def median_seconds(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one call, after one that does not count. On a GPU calls follow each other as in a network."""
    function()
    return statistics.median(timed(function, device, CUDA_CALLS if device.type == "cuda" else 1) for _ in range(repeats))


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int, seconds: float, at_least: int = 1) -> dict[str, list[float]]:
    """Calls each measure once per round, so that other load on the machine meets all of them: name -> its results.

    After `at_least` rounds none is begun that would probably end later than `seconds` from now.
    """
    begin = time.perf_counter()
    results = {name: [] for name in measures}
    for done in range(1, rounds + 1):
        for name, measure in measures.items():
            results[name].append(measure())
        spent = time.perf_counter() - begin
        if done >= at_least and spent + spent / done > seconds:
            break
    return results


@contextlib.contextmanager
def ops_mode(value: str) -> Iterator[None]:
    """RAYCOND_OPS within this process, which the ops look at in each call."""
    before = os.environ.get("RAYCOND_OPS")
    os.environ["RAYCOND_OPS"] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAYCOND_OPS"]
        else:
            os.environ["RAYCOND_OPS"] = before


def run_script(script: str, env: Mapping[str, str] | None = None) -> dict:
    """Runs Python source in a new process with the project's modules in reach; the JSON object on its last line."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the measured process ended with {result.returncode}: {result.stderr.strip()[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def examples(text: str) -> str:
    """The commands that a script's docstring shows, for the end of its --help."""
    return "\n".join(["\b", "Examples:", *(line[2:] for line in text.splitlines() if line.startswith(("    python ", "    RAYCOND_OPS=")))])


def device_name(device: torch.device) -> str:
    """As it stands in tables."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"


def prepare(device: str, threads: int) -> torch.device:
    """Sets this process up for measuring, as train.py does for training."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(threads)
    memory.keep_freed()                 # as train.py and gen_images.py do
    torch.backends.cudnn.benchmark = True
    return torch.device(device)
