"""The parts of a metric: samples, generated images, detector features of images.

`FeatureStats`, `ProgressMonitor`, `get_feature_detector*`, `iterate_random_labels` and `compute_feature_stats_*` have
StyleGAN3's names and arguments, for metrics written for it. Of these arguments rel_lo, rel_hi, batch_size and
data_loader_kwargs have no effect.

The latent and label of sample i derive from (seed, i) alone. Layer noise (StyleGAN2's) comes from torch's global
generators, which are seeded for each pass. Passes do not depend on the number of processes, so n processes make the
images that one makes.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.util import UserError
from metrics import detectors
from metrics.detectors.dataset import CHUNK, read_chunks
from metrics.detectors.features import FeatureStats, cached_path, read_cache, write_cache
from metrics.detectors.kinds import stem_of
from metrics.options import MetricOptions, ProgressMonitor
from training.run.snapshots import to_uint8

__all__ = ["Batch", "FeatureStats", "MetricOptions", "ProgressMonitor", "broadcast_object", "check_reals",
           "compute_feature_stats_for_dataset", "compute_feature_stats_for_generator", "count_broken", "gather_rows",
           "generate", "generated_images", "get_feature_detector", "get_feature_detector_name", "iterate",
           "iterate_random_labels", "iterate_samples", "passes", "preserve_rng", "rng", "sum_over_ranks"]

BATCH_DETECTOR = 64                      # images per pass of a detector


# ---------------------------------------------------------------------------------------------------------------------
# Samples.

@dataclass(frozen=True)
class Batch:
    """The samples of one pass."""

    index: np.ndarray                    # numbers of the samples, int64 [B]
    z: Tensor                            # latents [B, z_dim]
    c: Tensor                            # labels of items of the data set [B, c_dim]
    noise_seed: int                      # of the layer noise

    def inputs(self) -> tuple[Tensor, Tensor]:
        """z [B, z_dim] and c [B, c_dim]. A single latent or label is repeated for all samples."""
        return tuple(part.expand(len(self.index), -1) if len(part) == 1 else part for part in (self.z, self.c))


def rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random generator for draw number `index` of the stream with that name."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index])))


def passes(opts: MetricOptions, num_items: int, size: int) -> Iterator[np.ndarray]:
    """The item numbers [B] of each pass of this rank. Ranks take passes of `size` items in turn."""
    for start in range(opts.rank * size, num_items, opts.num_gpus * size):
        yield np.arange(start, min(start + size, num_items))


def iterate(opts: MetricOptions, num_samples: int, stream: str,
            choose: Callable[[int], tuple[np.ndarray, int | None]]) -> Iterator[Batch]:
    """This rank's share of samples 0 .. num_samples - 1, in passes.

    choose: number of a sample -> (latent, float32 [z_dim]; item of the data set whose label it gets, ignored for
    networks without labels). It must depend on the number alone. stream: names the draws of layer noise.
    """
    dataset = opts.dataset() if opts.G.c_dim > 0 else None
    for index in passes(opts, num_samples, opts.batch_gen):
        latents, items = zip(*(choose(int(i)) for i in index))
        z = torch.from_numpy(np.stack(latents))
        if dataset is None:
            c = torch.zeros([len(z), 0], dtype=torch.float32)
        else:
            c = torch.from_numpy(np.stack([dataset.get_label(int(item)) for item in items]))
        noise_seed = int(rng(opts.seed, stream + "/noise", int(index[0])).integers(2 ** 62))
        yield Batch(index, z.to(opts.device), c.to(opts.device), noise_seed)


def iterate_samples(opts: MetricOptions, num_samples: int, stream: str = "sample") -> Iterator[Batch]:
    """This rank's share of samples whose labels are drawn from the whole data set. Streams have different samples."""
    num_items = len(opts.dataset()) if opts.G.c_dim > 0 else 0

    def choose(i: int) -> tuple[np.ndarray, int | None]:
        draw = rng(opts.seed, stream, i)
        z = draw.standard_normal(opts.G.z_dim, dtype=np.float32)
        return z, draw.integers(num_items) if num_items else None

    return iterate(opts, num_samples, stream, choose)


def iterate_random_labels(opts: MetricOptions, batch_size: int) -> Iterator[Tensor]:
    """Yields random labels of the data set, [batch_size, c_dim], without end. They depend on the seed and the rank."""
    for pass_number in itertools.count(opts.rank, opts.num_gpus):
        if opts.G.c_dim == 0:
            yield torch.zeros([batch_size, 0], dtype=torch.float32, device=opts.device)
            continue
        items = rng(opts.seed, "labels", pass_number).integers(len(opts.dataset()), size=batch_size)
        yield torch.from_numpy(np.stack([opts.dataset().get_label(int(item)) for item in items])).to(opts.device)


# ---------------------------------------------------------------------------------------------------------------------
# Generated images.

def generate(opts: MetricOptions, batch: Batch) -> Tensor:
    """Images uint8 [B, C, H, W] on the device. Counts images that are not finite; such pixels become black or white.

    Reseeds torch's global generators; call it within `preserve_rng`.
    """
    torch.manual_seed(batch.noise_seed)
    images = opts.G(*batch.inputs(), **opts.G_kwargs)
    return to_uint8(count_broken(opts, images).nan_to_num(nan=-1, posinf=1, neginf=-1))


def count_broken(opts: MetricOptions, images: Tensor) -> Tensor:
    """Adds the number of images [B, C, H, W] that are not finite to opts.broken. Returns the images unchanged."""
    broken = len(images) - int(images.flatten(1).isfinite().all(dim=1).sum())
    if broken:
        opts.broken.append(broken)
    return images


def generated_images(opts: MetricOptions, batches: Iterable[Batch], num_samples: int,
                     what: str) -> Iterator[tuple[Batch, Tensor]]:
    """The batches with their images. Joins several passes of the generator into one large enough for a detector.

    A joined Batch has no noise seed (-1). num_samples: of all ranks, for the progress bar; what: its caption.
    """
    waiting: list[tuple[Batch, Tensor]] = []
    with opts.bar(num_samples, what) as bar:
        for batch in batches:
            waiting.append((batch, generate(opts, batch)))
            bar.update(len(batch.index) * opts.num_gpus)
            if sum(len(done.index) for done, _ in waiting) >= BATCH_DETECTOR:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)


def _joined(parts: list[tuple[Batch, Tensor]]) -> tuple[Batch, Tensor]:
    batches = [batch for batch, _ in parts]
    z, c = (torch.cat(rows) for rows in zip(*(batch.inputs() for batch in batches)))
    whole = Batch(np.concatenate([batch.index for batch in batches]), z, c, -1)
    return whole, torch.cat([images for _, images in parts])


@contextlib.contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Restores the state of torch's global generators at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Features.

def compute_feature_stats_for_dataset(
    opts:               MetricOptions,
    detector_url:       str,                            # Kind of detector (metrics.detectors.KINDS), or an address.
    detector_kwargs:    dict | str | None = None,       # Keywords of its call, or the name of a use. None: "features".
    rel_lo:             float       = 0,
    rel_hi:             float       = 1,
    batch_size:         int         = 64,
    data_loader_kwargs: dict | None = None,
    max_items:          int | None  = None,             # Take the first so many items. None: all.
    capture_all:        bool        = False,            # Keep the rows?
    capture_mean_cov:   bool        = False,            # Sum up mean and covariance?
    index:              np.ndarray | None = None,       # Numbers of the items to take. None: all.
    images:             bool        = False,            # Of opts.images() instead of the real ones; not cached.
) -> FeatureStats:                                      # Complete on all ranks.
    """Features of the real images. Reads them from the cache if it has them."""
    kind, use = _detector_of(opts, detector_url, detector_kwargs)
    dataset = opts.images() if images else opts.dataset()
    items = np.arange(len(dataset)) if index is None else np.asarray(index, dtype=np.int64)
    items = items if max_items is None else items[:max_items]
    detector = opts.detector(kind, use)
    stats = FeatureStats(capture_all, capture_mean_cov)
    path = None
    if opts.cache and not images:
        path = cached_path(opts.dataset_kwargs, dataset.image_shape, detector.sha256, stem_of(kind),
                           detector.kind.call(use), items, stats)
    if _read_on_all_ranks(opts, path, stats):
        return stats
    mine = list(passes(opts, len(items), CHUNK))
    with opts.bar(len(items), "images" if images else "real images") as bar:
        def look() -> Iterator[tuple[np.ndarray, Tensor]]:
            for numbers, pixels in zip(mine, read_chunks(dataset, (items[numbers] for numbers in mine))):
                yield numbers, detector(pixels.to(opts.device), use)
                bar.update(len(numbers) * opts.num_gpus)

        _collect(opts, stats, look(), len(items))
    if path is not None and opts.rank == 0:
        write_cache(path, stats)
    return stats


def compute_feature_stats_for_generator(opts: MetricOptions, detector_url: str,
                                        detector_kwargs: dict | str | None = None, rel_lo: float = 0,
                                        rel_hi: float = 1, batch_size: int = 64, batch_gen: int | None = None,
                                        max_items: int | None = None, capture_all: bool = False,
                                        capture_mean_cov: bool = False) -> FeatureStats:
    """Features of max_items generated images (None: opts.num_samples), batch_gen per pass (None: opts.batch_gen).

    Without a generator: of the first images to be judged. Otherwise as compute_feature_stats_for_dataset.
    """
    num_gen = max_items or opts.num_samples
    assert num_gen > 0, "max_items is missing: how many images?"
    if opts.G is None:
        return compute_feature_stats_for_dataset(opts, detector_url, detector_kwargs, max_items=num_gen, images=True,
                                                 capture_all=capture_all, capture_mean_cov=capture_mean_cov)
    kind, use = _detector_of(opts, detector_url, detector_kwargs)
    opts = opts if batch_gen is None else replace(opts, batch_gen=batch_gen)
    detector = opts.detector(kind, use)
    stats = FeatureStats(capture_all, capture_mean_cov)
    batches = generated_images(opts, iterate_samples(opts, num_gen), num_gen, "generated images")
    _collect(opts, stats, ((batch.index, detector(images, use)) for batch, images in batches), num_gen)
    return stats


def _detector_of(opts: MetricOptions, url: str, kwargs: dict | str | None) -> tuple[str, dict | str]:
    """(kind, use by name if it has one). Downloads a published detector that is named by address and missing."""
    kind = detectors.kind_of(url)
    if url != kind.name:
        if kind.name not in opts.detectors and not opts.detector_files and opts.rank == 0:
            detectors.prepare(kind.name, {})
        broadcast_object(opts, None)     # the other ranks wait
    call = "features" if kwargs is None else kwargs
    return kind.name, next((use for use, keywords in kind.uses.items() if keywords == call), call)


def _read_on_all_ranks(opts: MetricOptions, path: str | None, stats: FeatureStats) -> bool:
    """Fills `stats` from the cache on rank 0 and sends them to the others. False if the cache does not have them."""
    found = path is not None and opts.rank == 0 and read_cache(path, stats)
    if opts.num_gpus > 1:
        found, arrays = broadcast_object(opts, (found, stats.as_arrays() if found else None))
        if found:
            stats.take_arrays(arrays)
    return found


def _collect(opts: MetricOptions, stats: FeatureStats, chunks: Iterable[tuple[np.ndarray, Tensor]],
             num_items: int) -> None:
    """Fills `stats` from the (numbers, features) of every rank."""
    mine = FeatureStats(stats.capture_all, stats.capture_mean_cov)
    index: list[np.ndarray] = []
    for numbers, features in chunks:
        mine.append(features)
        index.append(numbers)
    stats.count = num_items
    if stats.capture_all:
        stats.rows = [gather_rows(opts, mine.rows, index, num_items)]
    if stats.capture_mean_cov:
        width = broadcast_object(opts, 0 if mine.total is None else len(mine.total))    # rank 0 has the first pass
        if mine.total is None:                          # fewer passes than processes
            mine.total, mine.outer = np.zeros([width]), np.zeros([width, width])
        stats.total, stats.outer = sum_over_ranks(opts, mine.total), sum_over_ranks(opts, mine.outer)


def check_reals(opts: MetricOptions) -> None:
    """Raises UserError if there are fewer real images than generated ones, for metrics that compare equally many."""
    have = len(opts.dataset())
    if have < opts.num_samples:
        raise UserError(f"compares with {opts.num_samples} real images, and {opts.dataset_kwargs['path']} has {have}; "
                        f"give --samples={have}, or choose the _full metric, which takes all real images")


def get_feature_detector_name(url: str) -> str:
    """'https://host/folder/vgg16.pkl' -> 'vgg16'."""
    return stem_of(url)


def get_feature_detector(url: str, device: torch.device | str = "cpu", num_gpus: int = 1, rank: int = 0,
                         verbose: bool = False) -> Any:
    """The detector's network on the device.

    url: NVIDIA's address of a published detector, 'inception' or 'vgg16' (downloaded if missing), else the path or
    address of a TorchScript file.
    """
    kind = detectors.kind_of(url)
    if num_gpus > 1 and rank > 0:
        torch.distributed.barrier()      # rank 0 fetches it
    if verbose and rank == 0:
        print(f"Loading the detector {kind.name} ...")
    path = detectors.prepare(kind.name, {}) if kind.url is not None else detectors.find(url, "features", {})
    if num_gpus > 1 and rank == 0:
        torch.distributed.barrier()
    return detectors.load(kind.name, path, device).module


# ---------------------------------------------------------------------------------------------------------------------
# Ranks. All ranks call these together.

def sum_over_ranks(opts: MetricOptions, array: np.ndarray) -> np.ndarray:
    """Sum of each rank's array, in float64."""
    if opts.num_gpus == 1:
        return array
    total = torch.from_numpy(np.array(array, dtype=np.float64)).to(opts.device)
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()


def broadcast_object(opts: MetricOptions, value: Any) -> Any:
    """Rank 0's value."""
    if opts.num_gpus == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=opts.device)
    return box[0]


def gather_rows(opts: MetricOptions, rows: list, index: list, num_items: int) -> np.ndarray:
    """All ranks' rows in the order of their numbers, [num_items, ...].

    rows: tensors or arrays [B, ...] of this rank; index: the numbers [B] of their rows. Over all ranks each number
    occurs once.
    """
    arrays = [row.detach().cpu().numpy() if isinstance(row, Tensor) else np.asarray(row) for row in rows]
    numbers = np.concatenate([np.asarray(i) for i in index]) if index else np.zeros([0], dtype=np.int64)
    parts: list = [(numbers, np.concatenate(arrays) if arrays else None)]
    if opts.num_gpus > 1:
        mine, parts = parts[0], [None] * opts.num_gpus
        torch.distributed.all_gather_object(parts, mine)
    parts = [part for part in parts if part[1] is not None]
    out = np.zeros([num_items, *parts[0][1].shape[1:]], dtype=parts[0][1].dtype)
    seen = np.zeros([num_items], dtype=np.int64)
    for numbers, values in parts:
        out[numbers] = values
        np.add.at(seen, numbers, 1)
    assert (seen == 1).all(), f"{(seen != 1).sum()} of {num_items} rows are missing or doubled"
    return out
