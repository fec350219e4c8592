"""Loading a snapshot (G, D, G_ema of raycond2) against torch.load of the same tensors: seconds and peak memory, each load in a process of its own.

    python benchmarks/bench_load.py --csv=benchmarks/load.csv

Time is that of the call, with `legacy` or torch imported and the file in the page cache; the modules of the networks are imported
within, from compiled byte code, which the first, uncounted run leaves. Memory is the peak of the process above what it took with
torch loaded, in units of the tensors' bytes.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch
from results import save_rows

ROOT = Path(__file__).parents[1]
LOADS = {
    "legacy":     ("import legacy", "legacy.load_network_pkl({path!r})"),
    "torch.load": ("", "torch.load({path!r}, weights_only=True)"),
}
SCRIPT = """
import json, time
import torch
def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(field))
torch.ones(2).add(1)
before = memory('VmRSS')
{setup}
begin = time.perf_counter()
loaded = {load}
print(json.dumps(dict(seconds=time.perf_counter() - begin, peak_bytes=memory('VmHWM') - before)))
"""


def write_files(folder: str, resolution: int, channel_base: int) -> tuple[dict[str, str], int]:
    """The snapshot and the same tensors by torch.save: (paths, bytes of the tensors)."""
    from torch_utils import misc, persistence
    from training.discriminator import Discriminator
    from training.networks_raycond2 import Generator

    common = dict(c_dim=25, img_resolution=resolution, img_channels=3, channel_base=channel_base)
    networks = dict(G=Generator(z_dim=512, w_dim=512, **common), D=Discriminator(**common), G_ema=Generator(z_dim=512, w_dim=512, **common).eval())
    paths = {"legacy": os.path.join(folder, "snapshot.pkl"), "torch.load": os.path.join(folder, "tensors.pt")}
    persistence.save(dict(networks, augment_pipe=None, training_set_kwargs=dict(path="data.zip")), paths["legacy"])
    tensors = {key: {name: tensor.detach() for name, tensor in misc.named_params_and_buffers(module)} for key, module in networks.items()}
    torch.save(tensors, paths["torch.load"])
    return paths, sum(tensor.nbytes for group in tensors.values() for tensor in group.values())


def measure(kind: str, path: str) -> dict[str, float]:
    """One load in a new process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": os.path.join(os.path.dirname(path), "byte-code")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    setup, load = LOADS[kind]
    script = SCRIPT.format(setup=setup, load=load.format(path=path))
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@click.command()
@click.option("--resolution", default=512, show_default=True, help="Of the images [px]")
@click.option("--cbase", "channel_base", default=32768, show_default=True, help="Channels at resolution R are this by R")
@click.option("--repeats", default=7, show_default=True, help="Loads of each kind, taken in turns; the median counts")
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
def main(resolution: int, channel_base: int, repeats: int, csv_path: str | None) -> None:
    """Print a row for each way to load, and the two ratios that are promised: time and memory at most 1.5."""
    with tempfile.TemporaryDirectory() as folder:
        paths, size = write_files(folder, resolution, channel_base)
        runs = {kind: [] for kind in LOADS}
        for repeat in range(repeats + 1):
            for kind in LOADS:
                result = measure(kind, paths[kind])
                if repeat > 0:                          # the first brings the file into the page cache
                    runs[kind].append(result)
    seconds = {kind: statistics.median(run["seconds"] for run in runs[kind]) for kind in LOADS}
    peak = {kind: max(run["peak_bytes"] for run in runs[kind]) for kind in LOADS}
    rows = [dict(load=kind, resolution=resolution, tensors_mb=f"{size / 1e6:.0f}", seconds=f"{seconds[kind]:.3f}",
                 fastest_s=f"{min(run['seconds'] for run in runs[kind]):.3f}", time_ratio=f"{seconds[kind] / seconds['torch.load']:.2f}",
                 peak_mb=f"{peak[kind] / 1e6:.0f}", peak_per_tensor_byte=f"{peak[kind] / size:.2f}", repeats=repeats,
                 python=platform.python_version()) for kind in LOADS]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if csv_path is not None:
        save_rows(csv_path, rows)


if __name__ == "__main__":
    main()
