"""The camera metrics on "networks" whose faults are known: the renderer of procedural heads in the generator's place.

    python benchmarks/check_camera_metrics.py --data=heads-32.zip --pose-regressor=pose-heads-32.pt --embedding=scenes-heads-32.pt

docs/metrics.md shows the table that this prints, and how the three files are made.
"""

from __future__ import annotations

import re

import click
import torch

from camera_utils import camera_for
from dataset_preprocessing.procedural import render, sample_scene
from metrics import metric_main
from metrics.detectors.training import dataset_kwargs_for

FIRST_SCENE = 50_000_000                 # far from the seeds that data sets are made with
COLUMNS = ["pose_error", "pose_error_real", "pose_error_chance", "pose_error_shuffled",
           "view_consistency", "view_consistency_between", "view_consistency_ratio"]


class RenderedHeads(torch.nn.Module):
    """As a generator is called. The latent chooses the scene, the label is the camera, but for what the fault says."""

    FAULTS = {
        "none": "faithful",
        "random camera": "ignores its camera, looks from a random one",
        "front": "ignores its camera, always looks from the front",
        "one scene": "ignores its latent",
    }
    z_dim, c_dim, img_channels = 4, 25, 3

    def __init__(self, fault: str, img_resolution: int):
        super().__init__()
        self.fault, self.img_resolution = fault, img_resolution
        self.eval()

    def forward(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """z: [N, 4]; c: [N, 25]. Returns images [N, 3, S, S] in -1 .. 1."""
        share = torch.special.ndtr(z.double())                              # uniform in 0 .. 1
        scenes = [FIRST_SCENE + (0 if self.fault == "one scene" else int(1e6 * x)) for x in share[:, 0].tolist()]
        if self.fault == "random camera":
            c = camera_for("heads", 1.4 * (share[:, 1] - 0.5), 0.5 * (share[:, 2] - 0.5)).to_label().float()
        if self.fault == "front":
            c = camera_for("heads", torch.zeros(len(z)), torch.zeros(len(z))).to_label()
        scenes = [sample_scene("heads", seed) for seed in scenes]
        images = render(scenes, c.numpy(), self.img_resolution)             # uint8 [N, S, S, 3]
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@click.command()
@click.option("--data",           help="Heads with cameras", metavar="ZIP", required=True)
@click.option("--pose-regressor", help="From `python -m metrics.pose_regressor`", metavar="FILE", required=True)
@click.option("--embedding",      help="From `python -m metrics.scene_embedding`", metavar="FILE", required=True)
@click.option("--samples",        help="Images of each renderer", type=click.IntRange(min=64), default=640, show_default=True)
@click.option("--resolution",     help="Their size", default=32, show_default=True, metavar="PIXELS")
def main(data: str, pose_regressor: str, embedding: str, samples: int, resolution: int) -> None:
    """Print a row per fault, in Markdown."""
    name = metric_main.find_metric("pose_error", samples).name
    count = name.removeprefix("pose_error")
    print(f"| renderer | {' | '.join(COLUMNS)} |\n|{' --- |' * (1 + len(COLUMNS))}")
    for fault, title in RenderedHeads.FAULTS.items():
        results = metric_main.calc_metric(
            name, G=RenderedHeads(fault, resolution), dataset_kwargs=dataset_kwargs_for(data), device="cpu",
            progress=False, detectors=dict(pose_regressor=pose_regressor, embedding=embedding)).results
        numbers = [results[re.sub("pose_error|view_consistency", rf"\g<0>{count}", column)] for column in COLUMNS]
        print(f"| {title} | {' | '.join(f'{number:.3f}' for number in numbers)} |", flush=True)


if __name__ == "__main__":
    main()
