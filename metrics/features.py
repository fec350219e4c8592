"""Detector features of many images, and their statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from dnnlib.util import open_whole
from metrics import stats_cache
from metrics.detector_kinds import stem_of
from metrics.options import MetricOptions
from metrics.reading import BATCH, read_chunks
from metrics.samples import broadcast_object, gather_rows, generated_images, iterate_samples, passes, sum_over_ranks


@dataclass
class FeatureStats:
    """What is known of features that were appended: their rows (where capture_all), or their moments (capture_mean_cov), or both."""

    capture_all:        bool = False
    capture_mean_cov:   bool = False
    max_items:          int | None = None               # rows beyond these are left out; None: all count
    count:              int = 0                         # rows appended
    total:              np.ndarray | None = None        # their sum [D], float64; None before the first
    outer:              np.ndarray | None = None        # the sum of their outer products [D, D], float64
    rows:               list[np.ndarray] = field(default_factory=list)      # float32 [B, D] each

    def append(self, features: np.ndarray | torch.Tensor) -> None:
        """features: [B, D]."""
        rows = features.detach().cpu().numpy() if isinstance(features, torch.Tensor) else np.asarray(features)
        assert rows.ndim == 2, rows.shape
        if self.max_items is not None:
            rows = rows[: max(self.max_items - self.count, 0)]
        self.count += len(rows)
        if self.capture_all:
            self.rows.append(rows.astype(np.float32))
        if self.capture_mean_cov:
            rows = rows.astype(np.float64)
            self.total = rows.sum(axis=0) + (0 if self.total is None else self.total)
            self.outer = rows.T @ rows + (0 if self.outer is None else self.outer)

    def append_torch(self, x: torch.Tensor, num_gpus: int = 1, rank: int = 0) -> None:
        """x: [B, D] on each of `num_gpus` ranks; the rows of all of them in turn, the first of each rank first. All ranks call it."""
        if num_gpus > 1:
            parts = [torch.empty_like(x) for _ in range(num_gpus)]
            torch.distributed.all_gather(parts, x.contiguous())
            x = torch.stack(parts, dim=1).flatten(0, 1)
        self.append(x)

    def is_full(self) -> bool:
        return self.max_items is not None and self.count >= self.max_items

    @property
    def num_items(self) -> int:
        return self.count

    @property
    def num_features(self) -> int | None:
        """D; None before the first row."""
        return len(self.total) if self.total is not None else self.rows[0].shape[1] if self.rows else None

    def get_all_torch(self) -> torch.Tensor:
        return torch.from_numpy(self.get_all())

    def get_all(self) -> np.ndarray:
        """float32 [N, D], in the order of appending."""
        assert self.capture_all and self.rows, "no rows were kept"
        self.rows = [np.concatenate(self.rows)]
        return self.rows[0]

    def get_mean_cov(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and covariance [D, D], E[x x^T] - E[x] E[x]^T, in float64."""
        assert self.capture_mean_cov and self.count > 0, "no moments were summed"
        mean = self.total / self.count
        return mean, self.outer / self.count - np.outer(mean, mean)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """What a file holds."""
        arrays = dict(count=np.array(self.count))
        if self.capture_all:
            arrays.update(rows=self.get_all())
        if self.capture_mean_cov:
            arrays.update(total=self.total, outer=self.outer)
        return arrays

    def take_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The reverse of as_arrays. Raises KeyError or ValueError where they do not fit."""
        count = int(arrays["count"])
        if self.capture_all:
            rows = arrays["rows"]
            if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != count:
                raise ValueError(f"rows {rows.shape} of {rows.dtype}, expected {count}")
            self.rows = [rows]
        if self.capture_mean_cov:
            total, outer = arrays["total"], arrays["outer"]
            if outer.shape != 2 * total.shape or not (np.isfinite(total).all() and np.isfinite(outer).all()):
                raise ValueError(f"moments {total.shape} and {outer.shape}, expected finite ones [D] and [D, D]")
            self.total, self.outer = total, outer
        self.count = count

    def save(self, path: str) -> None:
        """Whole or not at all. numpy's format, not a pickle."""
        with open_whole(path) as stream:
            np.savez(stream, **self.as_arrays())

    @staticmethod
    def load(path: str) -> FeatureStats:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        stats = FeatureStats(capture_all="rows" in arrays, capture_mean_cov="total" in arrays)
        stats.take_arrays(arrays)
        return stats


# ---------------------------------------------------------------------------------------------------------------------

def compute_feature_stats_for_dataset(
    opts:               MetricOptions,
    kind:               str,                            # Of detector, from metrics.detectors.KINDS ...
    use:                str | dict  = "features",       # ... and what it is used for, or the keywords of its call.
    max_items:          int | None  = None,             # Only the first so many items. None: all.
    index:              np.ndarray | None = None,       # Only these items. None: all.
    capture_all:        bool        = False,            # Keep the rows?
    capture_mean_cov:   bool        = False,            # Sum up mean and covariance?
    images:             bool        = False,            # Of opts.images() instead of the real ones; not cached.
) -> FeatureStats:                                      # Complete on all ranks.
    """Features of the real images, from the cache where they have been computed before."""
    dataset = opts.images() if images else opts.dataset()
    items = np.arange(len(dataset)) if index is None else np.asarray(index, dtype=np.int64)
    items = items if max_items is None else items[:max_items]
    detector = opts.detector(kind, use)
    stats = FeatureStats(capture_all, capture_mean_cov)
    path = None
    if opts.cache and not images:
        path = stats_cache.path_of(opts.dataset_kwargs, dataset.image_shape, detector.sha256, stem_of(kind), detector.kind.call(use), items,
                                   capture_all, capture_mean_cov)
    found = path is not None and opts.rank == 0 and stats_cache.read(path, stats)
    if opts.num_gpus > 1:
        found, arrays = broadcast_object(opts, (found, stats.as_arrays() if found and opts.rank == 0 else None))
        if found:
            stats.take_arrays(arrays)
    if found:
        return stats
    mine = list(passes(opts, len(items), BATCH))
    with opts.bar(len(items), "images" if images else "real images") as bar:
        def look() -> Iterator[tuple[np.ndarray, torch.Tensor]]:
            for numbers, pixels in zip(mine, read_chunks(dataset, (items[numbers] for numbers in mine))):
                yield numbers, detector(pixels.to(opts.device), use)
                bar.update(len(numbers) * opts.num_gpus)

        _collect(opts, stats, look(), len(items))
    if path is not None and opts.rank == 0:
        stats_cache.write(path, stats.as_arrays())
    return stats


def compute_feature_stats_for_generator(
    opts:               MetricOptions,
    kind:               str,
    use:                str | dict = "features",
    num_gen:            int | None = None,              # None: opts.num_samples.
    capture_all:        bool    = False,
    capture_mean_cov:   bool    = False,
) -> FeatureStats:                                      # Complete on all ranks.
    """Features of generated images; where there is no generator, of the first images to be judged."""
    num_gen = opts.num_samples if num_gen is None else num_gen
    if opts.G is None:
        return compute_feature_stats_for_dataset(opts, kind, use, num_gen, capture_all=capture_all, capture_mean_cov=capture_mean_cov, images=True)
    detector = opts.detector(kind, use)
    stats = FeatureStats(capture_all, capture_mean_cov)
    batches = iterate_samples(opts, num_gen)
    chunks = ((batch.index, detector(images, use)) for batch, images in generated_images(opts, batches, num_gen, "generated images"))
    _collect(opts, stats, chunks, num_gen)
    return stats


def _collect(opts: MetricOptions, stats: FeatureStats, chunks: Iterable[tuple[np.ndarray, torch.Tensor]], num_items: int) -> None:
    """Fills `stats` from every rank's (numbers, features)."""
    mine = FeatureStats(stats.capture_all, stats.capture_mean_cov)
    index: list[np.ndarray] = []
    for numbers, features in chunks:
        mine.append(features)
        index.append(numbers)
    stats.count = num_items
    if stats.capture_all:
        stats.rows = [gather_rows(opts, mine.rows, index, num_items)]
    if stats.capture_mean_cov:
        width = broadcast_object(opts, 0 if mine.total is None else len(mine.total))            # the first pass is rank 0's
        if mine.total is None:                          # fewer passes than processes
            mine.total, mine.outer = np.zeros([width]), np.zeros([width, width])
        stats.total, stats.outer = sum_over_ranks(opts, mine.total), sum_over_ranks(opts, mine.outer)
