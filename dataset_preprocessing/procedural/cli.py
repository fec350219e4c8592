"""The command line of render.py."""

from __future__ import annotations

import time

import click

from dataset_preprocessing.procedural.dataset import MAX_DATASET_SEED, SCENES_PER_SEED, render_dataset
from dataset_preprocessing.procedural.kinds import KINDS
from dnnlib import UserError, cli
from dnnlib.util import format_time, usable_cores


@click.command(cls=cli.Command, epilog="""\b
Examples:
  # 20,000 heads at 32 px, one view each
  python dataset_preprocessing/procedural/render.py --kind=heads --scenes=20000 --resolution=32 --dest=heads-32.zip
\b
  # 500 cars from 8 sides each
  python -m dataset_preprocessing.procedural.render --kind=cars --scenes=500 --views-per-scene=8 --resolution=128 \\
      --dest=cars-128.zip
""")
@click.option("--kind",            help="What to render", type=click.Choice(list(KINDS)), required=True)
@click.option("--scenes",          help="Number of scenes", metavar="INT", type=int, required=True)
@click.option("--views-per-scene", help="Cameras per scene", metavar="INT", type=int, default=1, show_default=True)
@click.option("--resolution",      help="Width and height of the images", metavar="PIXELS", type=int, default=32, show_default=True)
@click.option("--supersample",     help="Rays per pixel and axis; 1 leaves the edges jagged", metavar="INT", type=int, default=2, show_default=True)
@click.option("--seed",            help="Data sets of different seeds share no scene", metavar="INT", type=int, default=0, show_default=True)
@click.option("--dest",            help="What to write: FILE.zip, or a folder", metavar="PATH", type=cli.PATH, required=True)
@click.option("--workers",         help="Processes; 0 or 1 renders in this one  [default: one per core]", metavar="INT", type=int)
@click.option("--force",           help="Replace what is at --dest", is_flag=True)
def main(kind, scenes, views_per_scene, resolution, supersample, seed, dest, workers, force):
    """Render a data set of procedural heads or cars with known cameras.

    Writes PNG images and dataset.json in EG3D's layout. Heads: cameras around the front (yaw within 0.7, elevation
    within 0.25 rad, uniform), radius 2.7, focal length 4.2647. Cars: all around, 5 to 60 degrees above the ground,
    radius 1.3, focal length 1.7074. World y is up, the subject looks along +z. gen_images.py calls these cameras heads
    and procedural-cars.
    The same options give the same files on any number of workers.
    """
    for flag, value, low, high in (
            ("--scenes", scenes, 1, SCENES_PER_SEED), ("--views-per-scene", views_per_scene, 1, 10 ** 6),
            ("--resolution", resolution, 4, 4096), ("--supersample", supersample, 1, 16),
            ("--seed", seed, 0, MAX_DATASET_SEED), ("--workers", workers, 0, 1024)):
        if value is not None and not low <= value <= high:
            raise UserError(f"{flag}={value}: expected {low} to {high}")
    workers = usable_cores() if workers is None else workers
    start = time.monotonic()
    try:
        total = render_dataset(kind, scenes, views_per_scene, resolution, supersample, seed, dest, workers, force)
    except OSError as error:
        problem = error.strerror or error
        raise UserError(f"--dest={dest}: cannot write it: {problem}; nothing was left behind") from error
    seconds = time.monotonic() - start
    print(f"{dest}: {total} images of {scenes} {kind} at {resolution}x{resolution}, {format_time(seconds)}, "
          f"{total / seconds:.0f} images/s")
