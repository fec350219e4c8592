"""Detector features of many images, and their statistics."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from metrics import detectors, stats_cache
from metrics.options import MetricOptions
from metrics.samples import broadcast_object, gather_rows, generate, iterate_samples, passes, sum_over_ranks

BATCH_REAL = 64                          # real images per pass
READERS = 4                              # threads that decode them


class FeatureStats:
    """Rows of features: all of them, or their mean and covariance, or both.

    The moments are summed in float64. Rows beyond `max_items` are not counted.
    """

    def __init__(self, capture_all: bool = False, capture_mean_cov: bool = False, max_items: int | None = None):
        assert capture_all or capture_mean_cov
        self.capture_all = capture_all
        self.capture_mean_cov = capture_mean_cov
        self.max_items = max_items
        self.num_items = 0
        self.num_features: int | None = None
        self.rows: list[np.ndarray] = []
        self.raw_mean: np.ndarray | None = None         # sum of the rows [D]
        self.raw_cov: np.ndarray | None = None          # sum of their outer products [D, D]

    def is_full(self) -> bool:
        return self.max_items is not None and self.num_items >= self.max_items

    def append(self, x: np.ndarray) -> None:
        """x: [B, D]."""
        x = np.asarray(x, dtype=np.float32)
        assert x.ndim == 2 and self.num_features in (None, x.shape[1]), (x.shape, self.num_features)
        x = x if self.max_items is None else x[: self.max_items - self.num_items]
        self.num_features = x.shape[1]
        self.num_items += len(x)
        if self.capture_all:
            self.rows.append(x)
        if self.capture_mean_cov:
            wide = x.astype(np.float64)
            if self.raw_mean is None:
                self.raw_mean, self.raw_cov = np.zeros([x.shape[1]]), np.zeros([x.shape[1], x.shape[1]])
            self.raw_mean += wide.sum(axis=0)
            self.raw_cov += wide.T @ wide

    def append_torch(self, x: torch.Tensor) -> None:
        """x: [B, D]."""
        self.append(x.detach().cpu().numpy())

    def get_all(self) -> np.ndarray:
        """float32 [N, D]."""
        assert self.capture_all
        self.rows = [np.concatenate(self.rows)]
        return self.rows[0]

    def get_all_torch(self) -> torch.Tensor:
        return torch.from_numpy(self.get_all())

    def get_mean_cov(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and covariance [D, D] (of the N rows: divided by N) in float64."""
        assert self.capture_mean_cov and self.num_items > 0
        mean = self.raw_mean / self.num_items
        return mean, self.raw_cov / self.num_items - np.outer(mean, mean)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """What a file holds."""
        arrays = {"num_items": np.array(self.num_items)}
        if self.capture_all:
            arrays["rows"] = self.get_all()
        if self.capture_mean_cov:
            arrays.update(raw_mean=self.raw_mean, raw_cov=self.raw_cov)
        return arrays

    def take_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The reverse of as_arrays. Raises KeyError or ValueError where they do not fit."""
        self.num_items = int(arrays["num_items"])
        if self.capture_all:
            rows = arrays["rows"]
            if rows.ndim != 2 or len(rows) != self.num_items or rows.dtype != np.float32:
                raise ValueError(f"rows {rows.shape} {rows.dtype}, expected {self.num_items} of them")
            self.rows, self.num_features = [rows], rows.shape[1]
        if self.capture_mean_cov:
            self.raw_mean, self.raw_cov = arrays["raw_mean"], arrays["raw_cov"]
            self.num_features = len(self.raw_mean)
            if self.raw_cov.shape != (self.num_features, self.num_features) or not np.isfinite(self.raw_cov).all():
                raise ValueError(f"covariance {self.raw_cov.shape}, expected finite numbers of {self.num_features} features")


# ---------------------------------------------------------------------------------------------------------------------

def compute_feature_stats_for_dataset(
    opts:               MetricOptions,
    kind:               str,                            # Of detector, from metrics.detectors.KINDS ...
    use:                str         = "features",       # ... and what it is used for.
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
        path = stats_cache.path_of(opts.dataset_kwargs, dataset.image_shape, detector.sha256, kind, detectors.KINDS[kind].uses[use], items,
                                   capture_all, capture_mean_cov)
    found = path is not None and opts.rank == 0 and stats_cache.read(path, stats)
    if opts.num_gpus > 1:
        found, arrays = broadcast_object(opts, (found, stats.as_arrays() if found and opts.rank == 0 else None))
        if found:
            stats.take_arrays(arrays)
    if found:
        return stats
    chunks = ((numbers, detector(pixels.to(opts.device), use)) for numbers, pixels in _read(opts, dataset, items))
    _collect(opts, stats, chunks, len(items), "images" if images else "real images")
    if path is not None and opts.rank == 0:
        stats_cache.write(path, stats.as_arrays())
    return stats


def compute_feature_stats_for_generator(
    opts:               MetricOptions,
    kind:               str,
    use:                str     = "features",
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
    chunks = ((batch.index, detector(generate(opts, batch), use)) for batch in iterate_samples(opts, num_gen))
    _collect(opts, stats, chunks, num_gen, "generated images")
    return stats


def _collect(opts: MetricOptions, stats: FeatureStats, chunks: Iterator[tuple[np.ndarray, torch.Tensor]], num_items: int, what: str) -> None:
    """Fills `stats` from every rank's (numbers, features)."""
    mine = FeatureStats(stats.capture_all, stats.capture_mean_cov)
    index: list[np.ndarray] = []
    with opts.bar(num_items, what) as bar:
        for numbers, features in chunks:
            mine.append_torch(features)
            index.append(numbers)
            bar.update(len(numbers) * opts.num_gpus)
    stats.num_items = num_items
    if stats.capture_all:
        stats.rows = [gather_rows(opts, mine.rows, index, num_items)]
        stats.num_features = stats.rows[0].shape[1]
    if stats.capture_mean_cov:
        widths = sum_over_ranks(opts, np.array([0 if mine.num_features is None else mine.num_features, mine.num_features is not None], dtype=np.float64))
        stats.num_features = width = round(widths[0] / widths[1])
        if mine.raw_mean is None:                       # fewer passes than processes
            mine.raw_mean, mine.raw_cov = np.zeros([width]), np.zeros([width, width])
        stats.raw_mean, stats.raw_cov = sum_over_ranks(opts, mine.raw_mean), sum_over_ranks(opts, mine.raw_cov)


def _read(opts: MetricOptions, dataset: object, items: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """This rank's (numbers, images uint8 [B, C, H, W]); the next pass is read while the detector works."""
    def load(numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([dataset[int(item)][0] for item in items[numbers]]))

    with ThreadPoolExecutor(READERS) as pool:
        waiting = []
        for numbers in passes(opts, len(items), BATCH_REAL):
            waiting.append((numbers, pool.submit(load, numbers)))
            if len(waiting) > READERS:
                numbers, future = waiting.pop(0)
                yield numbers, future.result()
        for numbers, future in waiting:
            yield numbers, future.result()
