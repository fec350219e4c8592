"""The command that trains a pose regressor, metrics.detectors.pose_regressor.

    python -m metrics.pose_regressor --data=heads-32.zip --dest=pose-heads-32.pt
"""

from __future__ import annotations

from typing import Any

import click

from dnnlib import cli
from dnnlib.util import run_program
from metrics.detectors.pose_regressor import train_pose_regressor
from metrics.detectors.training import Recipe, check_dest, dataset_kwargs_for, make_recipe, recipe_options

EXAMPLES = """\b
Examples:
  # Heads at 32 px: some minutes on one core
  python -m metrics.pose_regressor --data=heads-32.zip --dest=pose-heads-32.pt
\b
  # Then, with the scene embedding (python -m metrics.scene_embedding) or a face recogniser
  python calc_metrics.py --metrics=pose_error --network=network-snapshot-000100.pkl \\
      --pose-regressor=pose-heads-32.pt --embedding=scenes-heads-32.pt
"""


@click.command(cls=cli.Command, epilog=EXAMPLES, context_settings=dict(max_content_width=130, show_default=True))
@recipe_options(Recipe(), data="Images and cameras: an EG3D zip or folder", batch="Batch size", least_batch=2)
@click.option("--mirror", help="Also train on mirrored images with mirrored cameras: for symmetric subjects", type=bool, default=False, metavar="BOOL")
def main(data: str, dest: str, mirror: bool, **options: Any) -> None:
    """Train a network that tells the viewing direction of an image, for the metric pose_error.

    Holds out a tenth of the data (whole scenes, if dataset.json names scenes) and stores the error on it in the file.
    """
    check_dest(dest)
    m = train_pose_regressor(dataset_kwargs_for(data, mirror), dest, make_recipe(**options))
    print(f"{dest}: held-out error {m['held_out_mean_deg']:.2f} deg (median {m['held_out_median_deg']:.2f}), "
          f"chance {m['chance_deg']:.2f} deg; {m['num_images']} images, held out by {m['held_out_by']}, "
          f"{m['training_time']}")


if __name__ == "__main__":
    run_program(main)
