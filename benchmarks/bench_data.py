"""Images per second of a data set in a zip, against bare decoding of the same bytes by Pillow and by pyspng.

    python benchmarks/bench_data.py                                                 # 512 px, three kinds of zips
    python benchmarks/bench_data.py --resolution=1024 --images=16 --csv=benchmarks/data.csv

The images are made up: smooth shapes with the noise of a camera, so that a PNG of 512 px has about the size of a
photo. `raw`: PNGs without compression, as dataset tools write them, in a zip that stores them. `stored`: compressed
PNGs in such a zip. `deflated`: the same in a zip that compresses once more. `dataset_per_s` is training.dataset in
this process, `worker_per_s` one worker process of a DataLoader with batches of four. All are measured in turns on one
thread; the median counts.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")        # as train.py: before torch

import click
import numpy as np
import PIL.Image
import torch
from timing import Session, examples, session

from camera_utils import camera_for
from training.dataset import ImageFolderDataset

# PNG level, zip method
KINDS = {"raw": (0, zipfile.ZIP_STORED), "stored": (6, zipfile.ZIP_STORED), "deflated": (6, zipfile.ZIP_DEFLATED)}
NOISE = 6                               # standard deviation [grey levels]
BATCH = 4


def make_image(seed: int, size: int) -> np.ndarray:
    """A few waves of low frequency and noise, uint8 [size, size, 3]."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [rng.randn(3) * np.cos(2 * np.pi * (rng.randn() * 3 * x + rng.randn() * 3 * y + rng.rand()))[:, :, None]
             for _ in range(6)]
    return np.clip(128 + 25 * sum(waves) + NOISE * rng.randn(size, size, 3), 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, level: int) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG", compress_level=level)
    return stream.getvalue()


def write_zip(path: str, files: list[bytes], method: int) -> None:
    """A data set with a camera per image."""
    label = camera_for("ffhq", yaw=0.1, pitch=0.0).to_label()[0].tolist()
    names = [f"00000/img{i:08d}.png" for i in range(len(files))]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in zip(names, files):
            archive.writestr(name, data)
        archive.writestr("dataset.json", json.dumps(dict(labels=[[name, label] for name in names])))


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """The bare ways: bytes -> pixels."""
    found = dict(pillow=lambda data: np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")))
    if importlib.util.find_spec("pyspng") is not None:
        import pyspng
        found["pyspng"] = pyspng.load
    return found


def rate(function: Callable[[int], object], count: int) -> float:
    """Calls per second with 0 .. count - 1."""
    begin = time.perf_counter()
    for index in range(count):
        function(index)
    return count / (time.perf_counter() - begin)


def worker_rate(dataset: ImageFolderDataset, count: int) -> float:
    """Images per second that one worker hands over; its start does not count."""
    sampler = [index % len(dataset) for index in range(count + 2 * BATCH)]
    loader = torch.utils.data.DataLoader(dataset, sampler=sampler, batch_size=BATCH, num_workers=1, prefetch_factor=2,
                                         multiprocessing_context="fork")
    batches = iter(loader)
    next(batches)
    begin = time.perf_counter()
    loaded = sum(len(images) for images, _ in batches)
    return loaded / (time.perf_counter() - begin)


def measure(run: Session, files: list[bytes], dataset: ImageFolderDataset, share: float) -> dict[str, float]:
    """Median rates [images/s]."""
    count = max(len(files), BATCH)

    def rate_of(load: Callable[[int], object]) -> Callable[[], float]:
        return lambda: rate(lambda i: load(i % len(files)), count)

    measures = {f"{name}_per_s": rate_of(lambda i, decode=decode: decode(files[i]))
                for name, decode in decoders().items()}
    measures.update(dataset_per_s=rate_of(dataset.__getitem__), worker_per_s=lambda: worker_rate(dataset, count))
    return {name: statistics.median(values) for name, values in run.in_turns(measures, share).items()}


@click.command(epilog=examples(__doc__))
@click.option("--resolution", default=512, show_default=True, help="Of the images [px]")
@click.option("--images", default=24, show_default=True, help="In a zip; each is read once in a round")
@session(rounds=5, seconds=120, threads=1)
def main(run: Session, resolution: int, images: int) -> None:
    """Print a row per kind of zip; at least one round of each."""
    torch.set_num_threads(1)
    pictures = [make_image(seed, resolution) for seed in range(min(images, 8))]
    for index, (kind, (level, method)) in enumerate(KINDS.items()):
        files = [encode(picture, level) for picture in pictures]
        files = [files[i % len(files)] for i in range(images)]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "images.zip")
            write_zip(path, files, method)
            dataset = ImageFolderDataset(path, use_labels=True)
            rates = measure(run, files, dataset, share=1 / (len(KINDS) - index))
            dataset.close()
        run.keep(dict(kind=kind, resolution=resolution, kb_per_image=f"{statistics.mean(map(len, files)) / 1e3:.0f}",
                      **{name: f"{value:.1f}" for name, value in rates.items()},
                      vs_pillow=f"{rates['dataset_per_s'] / rates['pillow_per_s']:.3f}", pillow=PIL.__version__))


if __name__ == "__main__":
    main()
