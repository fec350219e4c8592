"""The parts of a metric under StyleGAN3's names and with its signatures, for metrics written for it; and those that are ours.

Of StyleGAN3's arguments rel_lo, rel_hi, batch_size and data_loader_kwargs change nothing here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from metrics import detectors, features
from metrics.detector_kinds import kind_of, stem_of
from metrics.features import FeatureStats
from metrics.options import MetricOptions
from metrics.progress import ProgressMonitor
from metrics.samples import (
    Batch,
    broadcast_object,
    gather_rows,
    generate,
    generated_images,
    iterate,
    iterate_random_labels,
    iterate_samples,
    passes,
    preserve_rng,
    rng,
    sum_over_ranks,
)

__all__ = ["Batch", "FeatureStats", "MetricOptions", "ProgressMonitor", "broadcast_object", "compute_feature_stats_for_dataset",
           "compute_feature_stats_for_generator", "gather_rows", "generate", "generated_images", "get_feature_detector", "get_feature_detector_name",
           "iterate", "iterate_random_labels", "iterate_samples", "passes", "preserve_rng", "rng", "sum_over_ranks"]


def get_feature_detector_name(url: str) -> str:
    """'https://host/folder/vgg16.pkl' -> 'vgg16'."""
    return stem_of(url)


def get_feature_detector(url: str, device: torch.device | str = "cpu", num_gpus: int = 1, rank: int = 0, verbose: bool = False) -> Any:
    """The detector's network, on the device: NVIDIA's published ones by their address (or as 'inception', 'vgg16'), fetched where they are missing; else
    the TorchScript file at that path or address.
    """
    kind = kind_of(url)
    if num_gpus > 1 and rank > 0:
        torch.distributed.barrier()      # rank 0 fetches it
    if verbose and rank == 0:
        print(f"Loading the detector {kind.name} ...")
    path = detectors.prepare(kind.name, {}) if kind.url is not None else detectors.find(url, "features", {})
    if num_gpus > 1 and rank == 0:
        torch.distributed.barrier()
    return detectors.load(kind.name, path, device).module


def _detector_of(opts: MetricOptions, detector_url: str, detector_kwargs: dict | str | None) -> tuple[str, dict | str]:
    """The kind, fetched where it is published and neither given nor in the cache; and its use, by name where it has one."""
    kind = kind_of(detector_url)
    if kind.url is not None and kind.name not in opts.detectors and not opts.detector_files and opts.rank == 0:
        detectors.prepare(kind.name, {})
    broadcast_object(opts, None)         # the others wait
    call = "features" if detector_kwargs is None else detector_kwargs
    return kind.name, next((use for use, keywords in kind.uses.items() if keywords == call), call)


def compute_feature_stats_for_dataset(opts: MetricOptions, detector_url: str, detector_kwargs: dict | str | None = None, rel_lo: float = 0, rel_hi: float = 1,
                                      batch_size: int = 64, data_loader_kwargs: dict | None = None, max_items: int | None = None,
                                      **stats_kwargs: Any) -> FeatureStats:
    """Features of the real images; of the first `max_items`, None = all. stats_kwargs: capture_all, capture_mean_cov; see metrics.features for more."""
    return features.compute_feature_stats_for_dataset(opts, *_detector_of(opts, detector_url, detector_kwargs), max_items, **stats_kwargs)


def compute_feature_stats_for_generator(opts: MetricOptions, detector_url: str, detector_kwargs: dict | str | None = None, rel_lo: float = 0, rel_hi: float = 1,
                                        batch_size: int = 64, batch_gen: int | None = None, max_items: int | None = None,
                                        **stats_kwargs: Any) -> FeatureStats:
    """Features of `max_items` generated images (None: of the metric's own number). batch_gen: images per pass, None = opts.batch_gen."""
    num_gen = stats_kwargs.pop("num_gen", max_items) or opts.num_samples
    assert num_gen > 0, "max_items is missing: how many images?"
    opts = opts if batch_gen is None else replace(opts, batch_gen=batch_gen)
    return features.compute_feature_stats_for_generator(opts, *_detector_of(opts, detector_url, detector_kwargs), num_gen, **stats_kwargs)
