"""Images per second of a data set in a zip, against bare decoding of the same bytes by Pillow and by pyspng.

    python benchmarks/bench_data.py                                                 # 512 px, three kinds of zips
    python benchmarks/bench_data.py --resolution=1024 --images=16 --csv=benchmarks/data.csv

The images are made on the fly: smooth shapes with the noise of a camera, so that a PNG of 512 px has about the size of a photograph's.
`raw` are PNGs without compression as dataset tools write them, in a zip that stores them; `stored` are compressed PNGs in such a zip,
`deflated` the same in a zip that compresses once more. `dataset_per_s` is training.dataset in this process, `worker_per_s` one worker
process of a DataLoader with batches of four, all of it in turns on one thread.
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
from results import save_rows
from timing import examples, in_turns

from camera_utils import camera_for
from training.dataset import ImageFolderDataset

KINDS = {"raw": (0, zipfile.ZIP_STORED), "stored": (6, zipfile.ZIP_STORED), "deflated": (6, zipfile.ZIP_DEFLATED)}      # PNG level, zip method
NOISE = 6                               # standard deviation [grey levels]
BATCH = 4


def make_image(seed: int, size: int) -> np.ndarray:
    """A few waves of low frequency and noise, uint8 [size, size, 3]."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [rng.randn(3) * np.cos(2 * np.pi * (rng.randn() * 3 * x + rng.randn() * 3 * y + rng.rand()))[:, :, None] for _ in range(6)]
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
    loader = torch.utils.data.DataLoader(dataset, sampler=sampler, batch_size=BATCH, num_workers=1, prefetch_factor=2, multiprocessing_context="fork")
    batches = iter(loader)
    next(batches)
    begin = time.perf_counter()
    loaded = sum(len(images) for images, _ in batches)
    return loaded / (time.perf_counter() - begin)


def measure(files: list[bytes], path: str, rounds: int, seconds: float) -> dict[str, float]:
    """Median rates [images/s]."""
    dataset = ImageFolderDataset(path, use_labels=True)
    count = max(len(files), BATCH)
    measures = {f"{name}_per_s": lambda decode=decode: rate(lambda i: decode(files[i % len(files)]), count) for name, decode in decoders().items()}
    measures["dataset_per_s"] = lambda: rate(lambda i: dataset[i % len(files)], count)
    measures["worker_per_s"] = lambda: worker_rate(dataset, count)
    results = in_turns(measures, rounds, seconds)
    dataset.close()
    return {name: statistics.median(values) for name, values in results.items()}


@click.command(epilog=examples(__doc__))
@click.option("--resolution", default=512, show_default=True, help="Of the images [px]")
@click.option("--images", default=24, show_default=True, help="In a zip; each is read once in a round")
@click.option("--rounds", default=5, show_default=True, help="Each measures everything in turns; the median counts")
@click.option("--seconds", default=120.0, show_default=True, help="About how long to measure; at least one round of each kind")
@click.option("--device", default="cpu", hidden=True)
@click.option("--threads", default=1, hidden=True)
@click.option("--csv", "csv_path", help="Append the results to this file", metavar="FILE")
def main(resolution: int, images: int, rounds: int, seconds: float, device: str, threads: int, csv_path: str | None) -> None:
    """Print a row per kind of zip."""
    torch.set_num_threads(1)
    pictures = [make_image(seed, resolution) for seed in range(min(images, 8))]
    for kind, (level, method) in KINDS.items():
        files = [encode(picture, level) for picture in pictures]
        files = [files[index % len(files)] for index in range(images)]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "images.zip")
            write_zip(path, files, method)
            rates = measure(files, path, rounds, seconds / len(KINDS))
        row = dict(kind=kind, resolution=resolution, kb_per_image=f"{statistics.mean(map(len, files)) / 1e3:.0f}",
                   **{name: f"{value:.1f}" for name, value in rates.items()}, vs_pillow=f"{rates['dataset_per_s'] / rates['pillow_per_s']:.3f}",
                   pillow=PIL.__version__)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if csv_path is not None:
            save_rows(csv_path, [row])


if __name__ == "__main__":
    main()
