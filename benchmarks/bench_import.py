"""How long commands take before they do anything, relative to `import torch`; which packages they import for nothing.

    python benchmarks/bench_import.py
    python benchmarks/bench_import.py --commands=train.py,legacy --rounds=7 --csv=benchmarks/import.csv

`train.py`, `gen_images.py`, `calc_metrics.py`: the whole process of `--help` against one that imports torch.
`legacy`: a process that imports legacy and loads a raycond2 snapshot (G, D, G_ema) against one that imports torch and
loads the same tensors with torch.load. The fastest of the rounds counts. `not_needed`: installed packages that a
command imports, but neither `import torch` nor the lists here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time

import click
from bench_load import write_files
from timing import ROOT, Session, examples, session

TORCH = ["-c", "import torch"]
OWN = {"camera_utils", "dnnlib", "legacy", "metrics", "network_files", "torch_utils", "training",
       "train", "gen_images", "calc_metrics"}
USES = {                                # packages that each command needs
    "train.py":         {"click"},
    "gen_images.py":    {"click", "numpy", "torch", "tqdm", "PIL"},
    "calc_metrics.py":  {"click", "numpy", "torch"},
    "legacy":           {"click", "numpy", "torch"},
}


def arguments_of(name: str, paths: dict[str, str]) -> tuple[list[str], list[str]]:
    """Of Python: for the command, and for what it is compared with."""
    if name != "legacy":
        return [str(ROOT / name), "--help"], TORCH
    return (["-c", f"import legacy; legacy.load_network_pkl({paths['legacy']!r})"],
            ["-c", f"import torch; torch.load({paths['torch.load']!r}, weights_only=True)"])


def python(args: list[str]) -> str:
    """Runs a Python process that must succeed; returns its stderr."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    result = subprocess.run([sys.executable, *args], env=env, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"python {' '.join(args)} ended with {result.returncode}: {result.stderr.strip()[-2000:]}")
    return result.stderr


def seconds_of(args: list[str]) -> float:
    begin = time.perf_counter()
    python(args)
    return time.perf_counter() - begin


def imported(args: list[str]) -> dict[str, float]:
    """Top-level package -> seconds spent in its modules' own code while they were imported."""
    packages: dict[str, float] = {}
    for line in python(["-X", "importtime", *args]).splitlines():
        match = re.match(r"import time:\s*(\d+) \|\s*\d+ \|\s*([\w.]+)$", line)
        if match:
            package = match[2].split(".")[0]
            packages[package] = packages.get(package, 0.0) + int(match[1]) / 1e6
    return packages


@click.command(epilog=examples(__doc__))
@click.option("--commands", default=",".join(USES), show_default=True, metavar="A,B")
@click.option("--resolution", default=512, show_default=True, help="Of the snapshot [px]")
@click.option("--cbase", "channel_base", default=32768, show_default=True, help="Its channels at r px are this / r")
@session(rounds=5, seconds=120)
def main(run: Session, commands: str, resolution: int, channel_base: int) -> None:
    """Print a row per command; at least two rounds."""
    names = commands.split(",")
    for name in names:
        if name not in USES:
            raise click.UsageError(f"--commands={commands}: there is no {name!r}; there are {', '.join(USES)}")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(folder, resolution, channel_base)[0] if "legacy" in names else {}
        pairs = {name: arguments_of(name, paths) for name in names}
        known = {*imported(TORCH), *OWN, *sys.stdlib_module_names}
        spare = {}                      # this also leaves byte code, and files in the page cache
        for name, (ours, _) in pairs.items():
            unknown = {package: seconds for package, seconds in imported(ours).items()
                       if package not in known | USES[name] and not package.startswith("_")}
            spare[name] = dict(sorted(unknown.items(), key=lambda item: -item[1]))
        calls = {tuple(args): lambda args=args: seconds_of(args) for pair in pairs.values() for args in pair}
        times = run.in_turns(calls, at_least=min(2, run.rounds))
    for name in names:
        ours, theirs = (times[tuple(args)] for args in pairs[name])
        run.keep(dict(process=name, seconds=f"{min(ours):.3f}", torch_s=f"{min(theirs):.3f}",
                      ratio=f"{min(ours) / min(theirs):.3f}", rounds=len(ours), not_needed=" ".join(spare[name]),
                      not_needed_s=f"{sum(spare[name].values()):.3f}",
                      resolution=resolution if name == "legacy" else ""))


if __name__ == "__main__":
    main()
