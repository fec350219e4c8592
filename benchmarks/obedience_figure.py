"""Asked for and seen: yaw and pitch of networks' images against those of the camera, as a figure for the README.

    python benchmarks/obedience_figure.py --pose-regressor=obedience/pose-heads-32.pt --dest=obedience.png \\
        "this network=checkpoints/raycond2-heads-32x32.pkl" \\
        "published recipe=obedience/runs/pose-with-published-rays-seed0/.../network-snapshot-000060.pkl"
"""

from __future__ import annotations

import os

import click
import numpy as np
import torch

import legacy
from camera_utils import Camera
from dnnlib import UserError, cli
from dnnlib.util import open_whole, run_program
from metrics.camera_metrics import gaze_rad
from training.run.snapshots import to_uint8

YAWS = np.linspace(-0.7, 0.7, 15)        # [rad]
PITCHES = np.linspace(-0.25, 0.25, 11)   # [rad]
LATENTS = 100                            # at each angle
BATCH = 50


@torch.no_grad()
def seen_rad(network: str, detector: torch.jit.ScriptModule, axis: int) -> np.ndarray:
    """Angles [rad] that the regressor sees, [angles, LATENTS]; axis 0: yaw at pitch 0, 1: pitch at yaw 0."""
    networks = legacy.load_network_pkl(network)
    G, stats = legacy.generator_of(networks, network), networks["camera_stats"]
    if stats is None:
        raise UserError(f"{network}: has no camera statistics; give a network-snapshot-*.pkl of a network with cameras")
    z = torch.from_numpy(np.random.RandomState(0).randn(LATENTS, G.z_dim)).float()
    rows = []
    for angle in (YAWS, PITCHES)[axis]:
        yaw, pitch = ((angle, 0.0), (0.0, angle))[axis]
        c = Camera.from_stats(stats, yaw, pitch).to_label().float()
        images = torch.cat([to_uint8(G(part, c.expand(len(part), -1))) for part in z.split(BATCH)])
        rows.append(gaze_rad(detector(images).numpy(), stats["up"])[axis])
    return np.stack(rows)


@click.command(cls=cli.Command)
@click.argument("networks", nargs=-1, required=True, metavar="TITLE=PKL...")
@click.option("--pose-regressor", help="From `python -m metrics.pose_regressor`", metavar="FILE", type=cli.PATH, required=True)
@click.option("--dest", help="Picture to write", metavar="PNG", type=cli.PATH, required=True)
def main(networks: tuple[str, ...], pose_regressor: str, dest: str) -> None:
    """Draw what networks show against what they were asked for: mean and standard deviation over latents."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("matplotlib is missing: pip install matplotlib") from error
    if not os.path.isfile(pose_regressor):
        raise UserError(f"--pose-regressor={pose_regressor}: there is no such file; python -m metrics.pose_regressor makes one")
    detector = torch.jit.load(pose_regressor)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axis, (axes, angles, name) in enumerate(zip(figure.subplots(1, 2), (YAWS, PITCHES), ("yaw", "pitch"))):
        axes.plot(angles, angles, color="0.6", linestyle="--", label="exact")
        for text in networks:
            title, _, path = text.rpartition("=")
            seen = seen_rad(path, detector, axis)
            axes.errorbar(angles, seen.mean(axis=1), seen.std(axis=1), label=title or path, capsize=2)
        axes.set_xlabel(f"{name} asked for [rad]")
        axes.set_ylabel(f"{name} seen [rad]")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with open_whole(dest) as stream:
        FigureCanvasAgg(figure).print_png(stream)


if __name__ == "__main__":
    run_program(main)
