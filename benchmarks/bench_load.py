"""Loading a snapshot (G, D, G_ema of raycond2) against torch.load of the same tensors: seconds and peak memory.

    python benchmarks/bench_load.py --csv=benchmarks/load.csv

Each load is a process of its own, in turns; the median counts, and for memory the maximum. Time is that of the call,
with `legacy` or torch imported and the file in the page cache. The modules of the networks are imported within it,
from compiled byte code, which a first, uncounted load leaves. Memory is the peak of the process above what it took
with torch loaded.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile

import click
import torch
from timing import MEMORY_SCRIPT, Session, run_script, session

LOADS = {
    "legacy":     ("import legacy", "legacy.load_network_pkl({path!r})"),
    "torch.load": ("", "torch.load({path!r}, weights_only=True)"),
}
SCRIPT = MEMORY_SCRIPT + """
import torch
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
    from training.networks.discriminator import Discriminator
    from training.networks_raycond2 import Generator

    common = dict(c_dim=25, img_resolution=resolution, img_channels=3, channel_base=channel_base)
    G, G_ema = (Generator(z_dim=512, w_dim=512, **common) for _ in range(2))
    networks = dict(G=G, D=Discriminator(**common), G_ema=G_ema.eval())
    paths = {"legacy": os.path.join(folder, "snapshot.pkl"), "torch.load": os.path.join(folder, "tensors.pt")}
    persistence.save(dict(networks, augment_pipe=None, training_set_kwargs=dict(path="data.zip")), paths["legacy"])
    tensors = {key: {name: tensor.detach() for name, tensor in misc.named_params_and_buffers(module)}
               for key, module in networks.items()}
    torch.save(tensors, paths["torch.load"])
    return paths, sum(tensor.nbytes for group in tensors.values() for tensor in group.values())


def measure(kind: str, path: str) -> dict[str, float]:
    """One load in a new process."""
    setup, load = LOADS[kind]
    byte_code = os.path.join(os.path.dirname(path), "byte-code")
    return run_script(SCRIPT.format(setup=setup, load=load.format(path=path)),
                      dict(PYTHONPYCACHEPREFIX=byte_code, PYTHONDONTWRITEBYTECODE=""))


@click.command()
@click.option("--resolution", default=512, show_default=True, help="Of the images [px]")
@click.option("--cbase", "channel_base", default=32768, show_default=True, help="Channels at resolution r are this / r")
@session(rounds=7, seconds=600)
def main(run: Session, resolution: int, channel_base: int) -> None:
    """Print a row for each way to load, with its time relative to torch.load."""
    with tempfile.TemporaryDirectory() as folder:
        paths, size = write_files(folder, resolution, channel_base)
        for kind in LOADS:
            measure(kind, paths[kind])
        loads = run.in_turns({kind: lambda kind=kind: measure(kind, paths[kind]) for kind in LOADS})
    seconds = {kind: [load["seconds"] for load in loads[kind]] for kind in LOADS}
    for kind in LOADS:
        median, peak = statistics.median(seconds[kind]), max(load["peak_bytes"] for load in loads[kind])
        run.keep(dict(load=kind, resolution=resolution, tensors_mb=f"{size / 1e6:.0f}", seconds=f"{median:.3f}",
                      fastest_s=f"{min(seconds[kind]):.3f}",
                      time_ratio=f"{median / statistics.median(seconds['torch.load']):.2f}",
                      peak_mb=f"{peak / 1e6:.0f}", peak_per_tensor_byte=f"{peak / size:.2f}",
                      repeats=len(seconds[kind]), python=platform.python_version()))


if __name__ == "__main__":
    main()
