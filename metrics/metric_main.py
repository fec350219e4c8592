"""Metrics are checked, computed and reported here; metrics.table lists them.

Training calls `prepare` before its first step and `evaluate` at each snapshot. `calc_metric`, `report_metric`,
`is_valid_metric`, `list_valid_metrics` and `register_metric` have StyleGAN3's names and arguments.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import dnnlib
import network_files
from dnnlib.util import EasyDict, UserError
from metrics import detectors
from metrics.metric_utils import broadcast_object, preserve_rng, sum_over_ranks
from metrics.options import MetricOptions
from metrics.results import report_metric
from metrics.table import Request, find_metric, is_valid_metric, list_valid_metrics, parse_metrics, register_metric
from torch_utils import distributed

__all__ = ["calc_metric", "check_metrics", "compute", "evaluate", "find_metric", "is_valid_metric",
           "list_valid_metrics", "parse_metrics", "prepare", "register_metric", "report_metric"]


# ---------------------------------------------------------------------------------------------------------------------
# Checks.

def prepare(names: Iterable[str], dataset_kwargs: dict, G: torch.nn.Module, samples: int | None = None,
            fetch: bool = True, absent: list[str] | None = None, **options: Any) -> list[str]:
    """For training, before the first step: checks that all these metrics can be computed. Returns their full names.

    G: the generator, on any device, the meta device included. samples: number of images for all metrics; None: as
    their names say. fetch: download published detectors that are missing. absent: do not download them, but add their
    kinds to this list. options: further fields of MetricOptions, such as those of `detector_options`.
    Raises UserError if a name is unknown, a metric does not suit the network or the data, or a detector is missing or
    wrong. Call on one rank.
    """
    opts = MetricOptions(G=G, dataset_kwargs=dict(dataset_kwargs), device="cpu", **options)
    return [request.name for request in check_metrics(names, opts, samples, fetch and absent is None, absent)]


def check_metrics(names: Iterable[str], opts: MetricOptions, samples: int | None = None, fetch: bool = False,
                  absent: list[str] | None = None) -> list[Request]:
    """The metrics of these names, if each can be computed with these options; else raises UserError. See `prepare`."""
    requests = parse_metrics(names, samples)
    for request in requests:
        with _naming(request):
            _check_given_files(opts)
            _check_needs(opts, request)
            _check_minimum(opts, request)
            if request.metric.check is not None:
                request.metric.check(replace(opts, metric=request.name, num_samples=request.num_samples))
    for request in requests:
        with _naming(request):
            for kind, use in request.metric.detectors:
                row = detectors.KINDS[kind]
                published = kind not in opts.detectors and not opts.detector_files and row.url is not None
                if fetch and published:
                    detectors.prepare(kind, opts.dataset_kwargs)
                elif absent is not None and published and not os.path.isfile(row.cached_path(opts.dataset_kwargs)):
                    absent += [] if kind in absent else [kind]
                    continue
                detectors.check(kind, use, opts.detector_path(kind, use))
    if not absent:
        _tell_unnamed_files(requests, opts)
    return requests


@contextlib.contextmanager
def _naming(request: Request) -> Iterator[None]:
    """Puts the metric's name before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--metrics={request.name}: {error.message}") from error


def _check_given_files(opts: MetricOptions) -> None:
    for kind, path in opts.detectors.items():
        detectors.refuse_other_files(f"{detectors.KINDS[kind].flag}={path}", path)
    for path in opts.detector_files:
        detectors.refuse_other_files(f"--detector={path}", path)


def _check_needs(opts: MetricOptions, request: Request) -> None:
    """Does the metric suit the network, and the network the data?"""
    if opts.G is None:
        _check_images(opts, request)
        return
    G, needs, reals = opts.G, request.metric.needs, request.metric.reals
    if "stylegan3" in needs and not moves_its_image(G):
        raise UserError("equivariance is a property of StyleGAN3's networks, whose image can be moved; this one is "
                        f"{type(G).__module__}.{type(G).__name__}; leave the metric out")
    if "cameras" in needs and G.c_dim != 25:
        has = f"its labels have {G.c_dim} numbers" if G.c_dim else "it has no labels"
        raise UserError(f"this network takes no cameras ({has}); train one with --cond=1 on data with cameras, or "
                        "leave the metric out")
    if not reals and G.c_dim == 0:
        return                           # the metric does not look at the data, which may be missing
    if not opts.dataset_kwargs:
        raise UserError(f"needs the real images{'' if reals else chr(39) + ' labels'}; give --data")
    dataset, data = opts.dataset(), f"--data={opts.dataset_kwargs.get('path')}"
    if "cameras" in needs and not dataset.has_camera_labels:
        raise UserError(f"{data}: the labels are no cameras (they have {dataset.label_dim} numbers, expected 25); give "
                        "data with cameras")
    if G.c_dim > 0 and dataset.label_dim != G.c_dim:
        raise UserError(f"{data}: the labels have {dataset.label_dim} numbers, the network's {G.c_dim}; give the data "
                        "that it was trained on")
    if reals and dataset.image_shape[1:] != [G.img_resolution, G.img_resolution]:
        raise UserError(f"{data}: the images are {_size(dataset)}, those of the network {G.img_resolution} px; give "
                        "data of its size")


def _check_images(opts: MetricOptions, request: Request) -> None:
    """The same for images to be judged, without a generator."""
    if "generator" in request.metric.needs:
        raise UserError("needs a generator, and there are only images; give --network, or choose FID, KID, PR or IS")
    if request.metric.reals and not opts.dataset_kwargs:
        raise UserError("needs the real images to compare with; give --data")
    images = opts.images()
    flag = f"--images={opts.images_kwargs['path']}"
    if len(images) < request.num_samples:
        raise UserError(f"{flag}: {len(images)} images, and {request.num_samples} are needed; give more, or "
                        f"--samples={len(images)}")
    if request.metric.reals and images.image_shape[1:] != opts.dataset().image_shape[1:]:
        raise UserError(f"{flag}: the images are {_size(images)}, those of --data={opts.dataset_kwargs['path']} "
                        f"{_size(opts.dataset())}; resize them first")


def _check_minimum(opts: MetricOptions, request: Request) -> None:
    least = request.metric.minimum
    if request.num_samples < least:
        raise UserError(f"is defined for {least} images or more; raise --samples={request.num_samples}")
    if request.metric.reals and opts.dataset_kwargs and len(opts.dataset()) < least:
        raise UserError(f"is defined for {least} real images or more, and {opts.dataset_kwargs['path']} has "
                        f"{len(opts.dataset())}; give more data")


def _size(dataset: Any) -> str:
    _, height, width = dataset.image_shape
    return f"{width} wide and {height} high"


def moves_its_image(G: torch.nn.Module) -> bool:
    """Does the network have a user's transform, as StyleGAN3's do?"""
    return isinstance(getattr(getattr(G.synthesis, "input", None), "transform", None), torch.Tensor)


def _tell_unnamed_files(requests: list[Request], opts: MetricOptions) -> None:
    """Says which kind each --detector=FILE without a kind is taken for. Raises UserError if it would be two kinds."""
    served: dict[str, set[str]] = {}
    for kind, use in {pair for request in requests for pair in request.metric.detectors}:
        path = opts.detector_path(kind, use)
        if kind not in opts.detectors and path in opts.detector_files:
            served.setdefault(path, set()).add(kind)
    for path, kinds in served.items():
        if len(kinds) > 1:
            flags = " ".join(f"--detector={kind}=FILE" for kind in sorted(kinds))
            raise UserError(f"--detector={path}: the metrics need {' and '.join(sorted(kinds))} detectors, and the "
                            f"file could be either; say which it is, {flags}")
        print(f"--detector={path}: taken for {detectors.KINDS[min(kinds)].with_article}.")


# ---------------------------------------------------------------------------------------------------------------------
# Computing.

def calc_metric(metric: str, **kwargs: Any) -> EasyDict:
    """Computes the metric of that name. kwargs: fields of MetricOptions. Every process of num_gpus calls it.

    Returns dict(results, metric, total_time [s], total_time_str, num_gpus). Torch's global generators keep their state.
    """
    request = find_metric(metric)
    assert request is not None, f"{metric!r} is not among {list_valid_metrics()}"
    opts = replace(MetricOptions(**kwargs), metric=request.name, num_samples=request.num_samples, broken=[])
    if opts.G is not None and opts.G.training:
        opts.G = copy.deepcopy(opts.G).eval()           # does not change the caller's
    start = time.time()
    memo = (request.metric.shared, request.num_samples)
    if request.metric.shared is None or memo not in opts.shared:
        with torch.no_grad(), preserve_rng(opts.device):
            found = broadcast_object(opts, request.metric.function(opts))
        opts.shared[memo] = _without_broken_numbers(opts, found)
    results = dict(opts.shared[memo])
    seconds = time.time() - start
    return EasyDict(results=EasyDict(results), metric=request.name, total_time=seconds,
                    total_time_str=dnnlib.util.format_time(seconds), num_gpus=opts.num_gpus)


def _without_broken_numbers(opts: MetricOptions, found: dict) -> dict:
    """The results with numbers as float. If generated images are not finite, all numbers become nan, with a note.

    A network that has diverged does not end a training run.
    """
    results = {name: value if isinstance(value, str) else float(value) for name, value in found.items()}
    numbers = [name for name, value in results.items() if not isinstance(value, str)]
    broken = int(sum_over_ranks(opts, np.array([sum(opts.broken)], dtype=np.float64))[0])
    note = None
    if broken > 0:
        note = f"the network made images that are not finite ({broken} of them): it has diverged"
        results.update(dict.fromkeys(numbers, math.nan))
    elif not all(math.isfinite(results[name]) for name in numbers):
        note = "not finite, although the images are finite: do the detector's features suit them?"
    if note is not None:
        results[f"{opts.metric}_note"] = note
        if opts.rank == 0:
            print(f"{opts.metric}: {note}")
    return results


def evaluate(
    snapshot:       str,                                # Network file.
    run_dir:        str | None,                         # Folder for metric-NAME.jsonl. None: writes no file.
    names:          Iterable[str],
    device:         torch.device | str | None = None,
    **options:      Any,                                # Further fields of MetricOptions.
) -> dict[str, float]:                                  # Numbers by name, the same on all ranks.
    """Computes the metrics of a snapshot for the training loop. Every process of the run calls it; rank 0 reports.

    Reads the network from the file. Torch's global generators keep their state.
    """
    networks = network_files.read(snapshot)
    G = networks["G"] if networks["G_ema"] is None else networks["G_ema"]
    opts = dict(options, dataset_kwargs=dict(networks["training_set_kwargs"]), rank=distributed.get_rank(),
                num_gpus=distributed.get_world_size(), device=device)
    results = compute(names, G, run_dir, snapshot, **opts)
    return {key: value for result in results for key, value in result.results.items() if not isinstance(value, str)}


def compute(names: Iterable[str], G: torch.nn.Module | None, run_dir: str | None, snapshot: str | None,
            **options: Any) -> list[EasyDict]:
    """Computes each metric and reports it on rank 0. Returns what `calc_metric` returned."""
    opts = MetricOptions(G=None, **options)
    if G is not None:
        opts.G = G.eval().requires_grad_(False).to(opts.device)
    options = {name: value for name, value in vars(opts).items() if name not in ("metric", "num_samples")}
    results = []
    for name in names:
        result = calc_metric(name, **options)
        if opts.rank == 0:
            report_metric(result, run_dir=run_dir, snapshot_pkl=snapshot)
        results.append(result)
    return results
