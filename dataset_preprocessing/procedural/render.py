"""Writes a data set of procedural scenes: images, their cameras, and the seeds that give the scenes back."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, repeat
from multiprocessing import get_context

if __package__ in (None, ""):       # run as a file: Python then looks for modules beside it instead of in the project
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_preprocessing.procedural import KINDS, render, sample_labels, sample_scene
from dataset_preprocessing.procedural.archive import check_dest, open_archive
from dnnlib.util import UserError, format_time

VERSION = 1                         # of the pictures: raised when the same seed no longer gives the same image
SCENES_PER_SEED = 10 ** 9           # scene i of data set seed s has the scene seed s * SCENES_PER_SEED + i
MAX_DATASET_SEED = 2 ** 53 // SCENES_PER_SEED - 1
BLOCK = 64                          # images that a worker renders at a time


def render_pngs(kind: str, scene_seeds: list[int], labels: np.ndarray, resolution: int, supersample: int) -> list[bytes]:
    """PNG files of these scenes from these cameras [N, 25]; the work of one worker process."""
    images = render([sample_scene(kind, seed) for seed in scene_seeds], labels, resolution, supersample)
    files = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="png")
        files.append(stream.getvalue())
    return files


def render_dataset(kind: str, scenes: int, views_per_scene: int, resolution: int, supersample: int, seed: int, dest: str,
                   workers: int = 1, progress: bool = True) -> int:
    """Renders the data set into `dest` (a .zip or a folder) and returns the number of images. The files do not depend on `workers`."""
    scene_seeds = [seed * SCENES_PER_SEED + index for index in range(scenes) for _ in range(views_per_scene)]
    views = list(range(views_per_scene)) * scenes
    total = len(scene_seeds)
    labels = np.concatenate([sample_labels(kind, scene_seeds[i:i + 4096], views[i:i + 4096]) for i in range(0, total, 4096)])
    names = [f"{index // 1000:05d}/img{index:08d}.png" for index in range(total)]
    blocks = [slice(start, start + BLOCK) for start in range(0, total, BLOCK)]
    jobs = (repeat(kind), [scene_seeds[block] for block in blocks], [labels[block] for block in blocks], repeat(resolution), repeat(supersample))
    with open_archive(dest) as archive, tqdm(total=total, unit="img", disable=None if progress else True) as bar:
        for name, data in zip(names, chain.from_iterable(_run(jobs, min(workers, len(blocks))))):
            archive.add(name, data)
            bar.update()
        archive.add_json("dataset.json", {
            "labels": [[name, [float(value) for value in label]] for name, label in zip(names, labels)],
            "scenes": [[name, scene_seed] for name, scene_seed in zip(names, scene_seeds)],
            "procedural": dict(kind=kind, version=VERSION, seed=seed, scenes=scenes, views_per_scene=views_per_scene, resolution=resolution,
                supersample=supersample, render_again="from dataset_preprocessing.procedural import render, sample_scene; "
                "render(sample_scene(kind, scene_seed), [label], resolution, supersample)"),
        })
    return total


def _run(jobs: tuple, workers: int) -> Iterator[list[bytes]]:
    """Lists of PNG files, in order."""
    if workers <= 1:
        yield from map(render_pngs, *jobs)
        return
    # Fresh processes, not forks: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(render_pngs, *jobs)
    except BrokenProcessPool as error:
        raise UserError(f"--workers={workers}: a worker process was killed, perhaps for lack of memory; try fewer, or --workers=1") from error
    finally:
        pool.shutdown(cancel_futures=True)


@click.command(epilog="""\b
Examples:
  # 20,000 heads at 32 px, one view each
  python dataset_preprocessing/procedural/render.py --kind=heads --scenes=20000 --resolution=32 --dest=heads-32.zip
\b
  # 500 cars from 8 sides each
  python -m dataset_preprocessing.procedural.render --kind=cars --scenes=500 --views-per-scene=8 --resolution=128 --dest=cars-128.zip
""")
@click.option("--kind",            help="What to render", type=click.Choice(list(KINDS)), required=True)
@click.option("--scenes",          help="Number of scenes", metavar="INT", type=int, required=True)
@click.option("--views-per-scene", help="Cameras per scene", metavar="INT", type=int, default=1, show_default=True)
@click.option("--resolution",      help="Width and height of the images", metavar="PIXELS", type=int, default=32, show_default=True)
@click.option("--supersample",     help="Rays per pixel and axis; 1 leaves the edges jagged", metavar="INT", type=int, default=2, show_default=True)
@click.option("--seed",            help="Data sets of different seeds share no scene", metavar="INT", type=int, default=0, show_default=True)
@click.option("--dest",            help="What to write: FILE.zip, or a folder", metavar="PATH", type=str, required=True)
@click.option("--format", "file_format", help="Of the images", type=click.Choice(["png"]), default="png", show_default=True)
@click.option("--workers",         help="Processes; 0 or 1 renders in this one  [default: one per core]", metavar="INT", type=int)
@click.option("--force",           help="Replace what is at --dest", is_flag=True)
def main(kind, scenes, views_per_scene, resolution, supersample, seed, dest, file_format, workers, force):
    """Render a data set of procedural heads or cars with known cameras.

    Writes images and dataset.json in EG3D's layout. Heads: cameras around the front (yaw within 0.7, elevation within 0.25 rad, uniform),
    radius 2.7, focal length 4.2647. Cars: all around, 5 to 60 degrees above the ground, radius 1.3, focal length 1.7074.
    World y is up, the subject looks along +z. The same options give the same files on any number of workers.
    """
    for flag, value, low, high in (("--scenes", scenes, 1, SCENES_PER_SEED), ("--views-per-scene", views_per_scene, 1, 10 ** 6),
            ("--resolution", resolution, 4, 4096), ("--supersample", supersample, 1, 16), ("--seed", seed, 0, MAX_DATASET_SEED),
            ("--workers", workers, 0, 1024)):
        if value is not None and not low <= value <= high:
            raise UserError(f"{flag}={value}: expected {low} to {high}")
    check_dest(dest, force)
    workers = _num_cores() if workers is None else workers
    start = time.monotonic()
    try:
        total = render_dataset(kind, scenes, views_per_scene, resolution, supersample, seed, dest, workers)
    except OSError as error:
        raise UserError(f"--dest={dest}: cannot write it: {error.strerror or error}; nothing was left behind") from error
    seconds = time.monotonic() - start
    print(f"{dest}: {total} images of {scenes} {kind} at {resolution}x{resolution}, {format_time(seconds)}, {total / seconds:.0f} images/s")


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
