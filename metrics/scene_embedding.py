"""The command that trains a scene embedding, metrics.detectors.scene_embedding.

    python -m metrics.scene_embedding --data=heads-multi-view.zip --dest=scenes-heads-32.pt
"""

from __future__ import annotations

from typing import Any

import click

from dnnlib import cli
from dnnlib.util import run_program
from metrics.detectors.scene_embedding import USUAL, train_scene_embedding
from metrics.detectors.training import check_dest, dataset_kwargs_for, make_recipe, recipe_options

EXAMPLES = """\b
Examples:
  # 3,000 heads from 6 sides each, then an embedding: some minutes on one core
  python -m dataset_preprocessing.procedural.render --kind=heads --scenes=3000 --views-per-scene=6 --dest=heads-mv.zip
  python -m metrics.scene_embedding --data=heads-mv.zip --dest=scenes-heads-32.pt
\b
  # Then, with the pose regressor (python -m metrics.pose_regressor)
  python calc_metrics.py --metrics=view_consistency --network=network-snapshot-000100.pkl \\
      --pose-regressor=pose-heads-32.pt --embedding=scenes-heads-32.pt
"""


@click.command(cls=cli.Command, epilog=EXAMPLES, context_settings=dict(max_content_width=130, show_default=True))
@recipe_options(USUAL, data="Images, cameras and scenes with two or more views each: a zip or folder",
                batch="Images per batch: two of each scene", least_batch=4)
def main(data: str, dest: str, **options: Any) -> None:
    """Train a network that recognises a scene from other sides, for the metric view_consistency.

    Holds out a tenth of the scenes and stores in the file how well it tells them apart.
    """
    check_dest(dest)
    m = train_scene_embedding(dataset_kwargs_for(data), dest, make_recipe(**options))
    print(f"{dest}: held-out scenes told apart with AUC {m['held_out_auc']:.4f} (accuracy "
          f"{m['held_out_accuracy']:.4f}), similarity within {m['held_out_within']:.3f}, between "
          f"{m['held_out_between']:.3f}, effect of the camera {m['held_out_camera_effect']:+.3f}; {m['num_images']} "
          f"images, {m['training_time']}")


if __name__ == "__main__":
    run_program(main)
