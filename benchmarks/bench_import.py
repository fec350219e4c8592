"""How long commands take before they do anything, against `import torch`; what they import and have no use for.

    python benchmarks/bench_import.py
    python benchmarks/bench_import.py --commands=train.py,legacy --rounds=7 --csv=benchmarks/import.csv

`train.py`, `gen_images.py`, `calc_metrics.py`: the whole process of `--help` against one that imports torch. `legacy`: a process that
imports legacy and loads a raycond2 snapshot (G, D, G_ema) against one that imports torch and loads the same tensors with torch.load.
The fastest of some rounds counts.
`not_needed`: installed packages that a command imports, that `import torch` does not, and that are not listed here as of use to it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import click
from bench_load import write_files
from results import save_rows
from timing import ROOT, examples, in_turns


class Command(NamedTuple):
    """A command, what it is compared with, and which packages it uses."""

    args: list[str]                     # of Python
    against: list[str]
    uses: set[str]


TORCH = ["-c", "import torch"]
OWN = {"camera_utils", "dnnlib", "legacy", "metrics", "network_files", "torch_utils", "training", "train", "gen_images", "calc_metrics"}


def commands_for(paths: dict[str, str]) -> dict[str, Command]:
    """Name -> command; `legacy` where there are files to load."""
    found = {
        "train.py":         Command([str(ROOT / "train.py"), "--help"], TORCH, {"click"}),
        "gen_images.py":    Command([str(ROOT / "gen_images.py"), "--help"], TORCH, {"click", "numpy", "torch", "tqdm", "PIL"}),
        "calc_metrics.py":  Command([str(ROOT / "calc_metrics.py"), "--help"], TORCH, {"click", "numpy", "torch"}),
    }
    if paths:
        found["legacy"] = Command(["-c", f"import legacy; legacy.load_network_pkl({paths['legacy']!r})"],
                                  ["-c", f"import torch; torch.load({paths['torch.load']!r}, weights_only=True)"], {"click", "numpy", "torch"})
    return found


def run(args: list[str], env: dict[str, str]) -> str:
    """stderr of a Python process that succeeds."""
    result = subprocess.run([sys.executable, *args], env=env, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"python {' '.join(args)} ended with {result.returncode}: {result.stderr.strip()[-2000:]}")
    return result.stderr


def seconds_of(args: list[str], env: dict[str, str]) -> float:
    begin = time.perf_counter()
    run(args, env)
    return time.perf_counter() - begin


def imported(args: list[str], env: dict[str, str]) -> dict[str, float]:
    """Top-level package -> seconds spent in its modules' own code while they were imported."""
    packages: dict[str, float] = {}
    for line in run(["-X", "importtime", *args], env).splitlines():
        match = re.match(r"import time:\s*(\d+) \|\s*\d+ \|\s*([\w.]+)$", line)
        if match:
            package = match[2].split(".")[0]
            packages[package] = packages.get(package, 0.0) + int(match[1]) / 1e6
    return packages


def unneeded_by(commands: dict[str, Command], env: dict[str, str]) -> dict[str, dict[str, float]]:
    """What each command imports for nothing: package -> seconds."""
    torch_imports = set(imported(TORCH, env))
    found = {}
    for name, command in commands.items():
        known = torch_imports | command.uses | OWN | set(sys.stdlib_module_names)
        spare = {package: seconds for package, seconds in imported(command.args, env).items() if package not in known and not package.startswith("_")}
        found[name] = dict(sorted(spare.items(), key=lambda item: -item[1]))
    return found


@click.command(epilog=examples(__doc__))
@click.option("--commands", default="train.py,gen_images.py,calc_metrics.py,legacy", show_default=True, metavar="A,B")
@click.option("--resolution", default=512, show_default=True, help="Of the snapshot [px]")
@click.option("--cbase", "channel_base", default=32768, show_default=True, help="Its channels at resolution R are this by R")
@click.option("--rounds", default=5, show_default=True, help="Each measures command and counterpart in turns; the fastest counts")
@click.option("--seconds", default=120.0, show_default=True, help="About how long to measure; at least two rounds")
@click.option("--device", default="cpu", hidden=True)
@click.option("--threads", default=2, hidden=True)
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
def main(commands: str, resolution: int, channel_base: int, rounds: int, seconds: float, device: str, threads: int, csv_path: str | None) -> None:
    """Print a row per command."""
    begin = time.perf_counter()
    names = commands.split(",")
    with tempfile.TemporaryDirectory() as folder:
        found = commands_for(write_files(folder, resolution, channel_base)[0] if "legacy" in names else {})
        for name in names:
            if name not in found:
                raise click.UsageError(f"--commands={commands}: there is no {name!r}; there are train.py, gen_images.py, calc_metrics.py, legacy")
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        unneeded = unneeded_by({name: found[name] for name in names}, env)          # leaves byte code and files in the page cache, too
        calls = {" ".join(args): args for name in names for args in (found[name].args, found[name].against)}
        times = in_turns({key: lambda args=args: seconds_of(args, env) for key, args in calls.items()}, rounds, seconds - (time.perf_counter() - begin),
                         at_least=2)
    rows = []
    for name in names:
        ours, theirs = (min(times[" ".join(args)]) for args in (found[name].args, found[name].against))
        rows.append(dict(process=name, seconds=f"{ours:.3f}", torch_s=f"{theirs:.3f}", ratio=f"{ours / theirs:.3f}",
                         rounds=len(times[" ".join(found[name].args)]), not_needed=" ".join(unneeded[name]),
                         not_needed_s=f"{sum(unneeded[name].values()):.3f}", resolution=resolution if name == "legacy" else ""))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    if csv_path is not None:
        save_rows(csv_path, rows)


if __name__ == "__main__":
    main()
