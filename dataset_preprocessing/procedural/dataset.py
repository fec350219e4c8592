"""A data set of procedural scenes: images, their cameras, and the seeds of their scenes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, repeat
from multiprocessing import get_context

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset_preprocessing.procedural.archive import check_dest, open_archive
from dataset_preprocessing.procedural.kinds import sample_labels, sample_scene
from dataset_preprocessing.procedural.renderer import render
from dnnlib.util import UserError

VERSION = 1                         # of the pictures; raise it when the same seed gives another image
SCENES_PER_SEED = 10 ** 9           # scene i of data set seed s has the scene seed s * SCENES_PER_SEED + i
MAX_DATASET_SEED = 2 ** 53 // SCENES_PER_SEED - 1
BLOCK = 64                          # images that a worker renders at a time


def render_pngs(kind: str, scene_seeds: list[int], labels: np.ndarray, resolution: int,
                supersample: int) -> list[bytes]:
    """PNG files of these scenes from these cameras [N, 25]. Worker processes call it."""
    images = render([sample_scene(kind, seed) for seed in scene_seeds], labels, resolution, supersample)
    files = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="png")
        files.append(stream.getvalue())
    return files


def render_dataset(kind: str, scenes: int, views_per_scene: int, resolution: int, supersample: int, seed: int,
                   dest: str, workers: int = 1, force: bool = False, progress: bool = True) -> int:
    """Renders the data set into `dest` (a .zip or a folder) and returns the number of images.

    The files do not depend on `workers`. Raises UserError, before any work, if `dest` cannot be written, or exists and
    `force` is not given.
    """
    check_dest(dest, force)
    scene_seeds = [seed * SCENES_PER_SEED + index for index in range(scenes) for _ in range(views_per_scene)]
    views = list(range(views_per_scene)) * scenes
    total = len(scene_seeds)
    labels = np.concatenate([sample_labels(kind, scene_seeds[i:i + 4096], views[i:i + 4096])
                             for i in range(0, total, 4096)])
    names = [f"{index // 1000:05d}/img{index:08d}.png" for index in range(total)]
    blocks = [slice(start, start + BLOCK) for start in range(0, total, BLOCK)]
    jobs = (repeat(kind), [scene_seeds[block] for block in blocks], [labels[block] for block in blocks],
            repeat(resolution), repeat(supersample))
    with open_archive(dest) as archive, tqdm(total=total, unit="img", disable=None if progress else True) as bar:
        for name, data in zip(names, chain.from_iterable(_run(jobs, min(workers, len(blocks))))):
            archive.add(name, data)
            bar.update()
        archive.add_json("dataset.json", {
            "labels": [[name, [float(value) for value in label]] for name, label in zip(names, labels)],
            "scenes": [[name, scene_seed] for name, scene_seed in zip(names, scene_seeds)],
            "procedural": dict(
                kind=kind, version=VERSION, seed=seed, scenes=scenes, views_per_scene=views_per_scene,
                resolution=resolution, supersample=supersample,
                render_again="from dataset_preprocessing.procedural import render, sample_scene; "
                             "render(sample_scene(kind, scene_seed), [label], resolution, supersample)"),
        })
    return total


def _run(jobs: tuple, workers: int) -> Iterator[list[bytes]]:
    """Lists of PNG files, in order."""
    if workers <= 1:
        yield from map(render_pngs, *jobs)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(render_pngs, *jobs)
    except BrokenProcessPool as error:
        raise UserError(f"--workers={workers}: a worker process was killed, perhaps for lack of memory; try fewer, or "
                        "--workers=1") from error
    finally:
        pool.shutdown(cancel_futures=True)
