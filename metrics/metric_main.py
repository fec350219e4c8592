"""The metrics: a table with a row each, and how they are asked for, checked, computed and reported.

A name may hold the number of generated images: fid50k_full, fid1k_full, ppl2_wend (50000 where none is said), ppl2_wend1k.
`--samples=1000` puts that number into all names.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import dnnlib
from dnnlib.util import EasyDict, UserError, closest
from metrics import detectors
from metrics.options import MetricOptions
from metrics.reporting import report_metric
from metrics.samples import broadcast_object, preserve_rng, sum_over_ranks

__all__ = ["Metric", "Request", "calc_metric", "check_metrics", "check_reals", "find_metric", "is_valid_metric", "list_valid_metrics", "metrics",
           "parse_metrics", "register_metric", "report_metric"]

# Importing one of these fills in its rows.
METRIC_MODULES = ("frechet_inception_distance", "kernel_inception_distance", "precision_recall", "inception_score", "perceptual_path_length",
                  "equivariance", "pose_error", "view_consistency", "fid_by_yaw")

NEEDS = ("generator", "cameras", "stylegan3")


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    name:           str                                 # {count} stands where the number of images goes, if it has one.
    function:       Callable[[MetricOptions], dict]     # -> results by name: numbers, or text that explains one
    samples:        int                                 # Number of images where the user says none.
    count_optional: bool                = False         # Is the name without a number the one with `samples`?
    detectors:      tuple[tuple[str, str], ...] = ()    # (kind, use), see metrics.detectors.KINDS.
    needs:          tuple[str, ...]     = ()            # Of NEEDS.
    reals:          bool                = True          # Does it look at the real images?
    minimum:        int                 = 1             # Fewest images, of either kind, that it is defined for.
    check:          Callable[[MetricOptions, Request], None] | None = None      # Further conditions: raises UserError.
    shared:         str | None          = None          # Rows with the same word are one computation.
    unit:           str                 = ""            # Of its numbers.

    def name_for(self, count: int) -> str:
        return self.name.replace("{count}", "" if self.count_optional and count == self.samples else format_count(count))


@dataclass(frozen=True)
class Request:
    """A metric that somebody asked for."""

    metric: Metric
    num_samples: int

    @property
    def name(self) -> str:
        return self.metric.name_for(self.num_samples)


_metrics: dict[str, Metric] = {}


def register_metric(name: str | Callable, **row: Any) -> Callable:
    """Decorator that adds a row to the table: fields of `Metric`. In the name {count} stands where the number of images goes.

    Alone, as StyleGAN3 has it, it registers a function (opts) -> dict under the function's own name; what it looks at is its own affair.
    """
    if callable(name):
        _metrics[name.__name__] = Metric(name.__name__, name, samples=0, minimum=0, reals=False)
        return name
    assert "{count}" in name, f"{name}: says nowhere how many images"
    assert set(row.get("needs", ())) <= set(NEEDS), row["needs"]

    def add(function: Callable[[MetricOptions], dict]) -> Callable[[MetricOptions], dict]:
        _metrics[name] = Metric(name, function, **row)
        return function

    return add


def metrics() -> dict[str, Metric]:
    """The table: pattern of the name -> row."""
    for module in METRIC_MODULES:
        importlib.import_module(f"metrics.{module}")
    return _metrics


# ---------------------------------------------------------------------------------------------------------------------
# Names.

def format_count(count: int) -> str:
    """50000 -> '50k', 1234 -> '1234'."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def find_metric(name: str, samples: int | None = None) -> Request | None:
    """The row and the number of images that the name stands for, or None. `samples` replaces the number."""
    if name in metrics():                               # one without a number in its name
        return Request(_metrics[name], 0)
    for row in metrics().values():
        if "{count}" not in row.name:
            continue
        optional = "?" if row.count_optional else ""
        pattern = re.escape(row.name).replace(re.escape("{count}"), rf"([1-9]\d*k?){optional}")
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        text = match.group(1)
        count = row.samples if text is None else int(text.rstrip("k")) * (1000 if text.endswith("k") else 1)
        return Request(row, samples or count)
    return None


def is_valid_metric(metric: str) -> bool:
    return find_metric(metric) is not None


def list_valid_metrics() -> list[str]:
    """Names with their usual numbers of images; other numbers are valid too."""
    return [row.name_for(row.samples) for row in metrics().values()]


def parse_metrics(names: Iterable[str], samples: int | None = None) -> list[Request]:
    """What these names stand for, each once. Raises UserError for others."""
    requests: dict[str, Request] = {}
    for name in names:
        request = find_metric(name, samples)
        if request is None:
            known = list_valid_metrics()
            raise UserError(f"--metrics={name}: there is no such metric; {closest(name, known)}there are {', '.join(known)}")
        requests.setdefault(request.name, request)
    return list(requests.values())


# ---------------------------------------------------------------------------------------------------------------------
# Checks.

def check_metrics(names: Iterable[str], opts: MetricOptions, samples: int | None = None, fetch: bool = False,
                  absent: list[str] | None = None) -> list[Request]:
    """The requests, if every one of them can be computed with these options; else UserError, one line. Before any work.

    opts.G may be on the meta device: only what kind of network it is counts. `fetch`: download published detectors
    that are missing. `absent`: add their kinds to this list instead of refusing.
    """
    requests = parse_metrics(names, samples)
    for request in requests:
        with _naming(request):
            _check_given_files(opts)
            _check_needs(opts, request)
            _check_minimum(opts, request)
            if request.metric.check is not None:
                request.metric.check(opts, request)
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


def _check_given_files(opts: MetricOptions) -> None:
    for kind, path in opts.detectors.items():
        detectors.refuse_other_files(f"{detectors.KINDS[kind].flag}={path}", path)
    for path in opts.detector_files:
        detectors.refuse_other_files(f"--detector={path}", path)


def _tell_unnamed_files(requests: list[Request], opts: MetricOptions) -> None:
    """Says what --detector=FILE without a kind serves as. Raises UserError where one file would be taken for two kinds."""
    served: dict[str, set[str]] = {}
    for kind, use in {pair for request in requests for pair in request.metric.detectors}:
        path = opts.detector_path(kind, use)
        if kind not in opts.detectors and path in opts.detector_files:
            served.setdefault(path, set()).add(kind)
    for path, kinds in served.items():
        if len(kinds) > 1:
            raise UserError(f"--detector={path}: the metrics need {' and '.join(sorted(kinds))} detectors, and the file could be either; "
                            f"say which it is, {' '.join(f'--detector={kind}=FILE' for kind in sorted(kinds))}")
        print(f"--detector={path}: taken for {detectors.KINDS[min(kinds)].with_article}.")


@contextlib.contextmanager
def _naming(request: Request) -> Iterator[None]:
    """A UserError in it says which metric it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--metrics={request.name}: {error.message}") from error


def _check_needs(opts: MetricOptions, request: Request) -> None:
    if opts.G is None:
        _check_images(opts, request)
        return
    G, needs, reals = opts.G, request.metric.needs, request.metric.reals
    if "stylegan3" in needs and not moves_its_image(G):
        raise UserError(f"equivariance is a property of StyleGAN3's networks, whose image can be moved; this one is {type(G).__module__}.{type(G).__name__}; "
                        "leave the metric out")
    if "cameras" in needs and G.c_dim != 25:
        raise UserError(f"this network takes no cameras ({f'its labels have {G.c_dim} numbers' if G.c_dim else 'it has no labels'}); "
                        "train one with --cond=1 on data with cameras, or leave the metric out")
    if not reals and G.c_dim == 0:
        return                           # the data are not looked at, and need not be there
    if not opts.dataset_kwargs:
        raise UserError(f"needs the real images{'' if reals else chr(39) + ' labels'}; give --data")
    data = f"--data={opts.dataset_kwargs.get('path')}"
    if "cameras" in needs and not opts.dataset().has_camera_labels:
        raise UserError(f"{data}: the labels are no cameras (they have {opts.dataset().label_dim} numbers, expected 25); give data with cameras")
    if G.c_dim > 0 and opts.dataset().label_dim != G.c_dim:
        raise UserError(f"{data}: the labels have {opts.dataset().label_dim} numbers, the network's {G.c_dim}; give the data that it was trained on")
    if reals and opts.dataset().image_shape[1:] != [G.img_resolution, G.img_resolution]:
        raise UserError(f"{data}: the images are {_size(opts.dataset())}, those of the network {G.img_resolution} px; give data of its size")


def _check_images(opts: MetricOptions, request: Request) -> None:
    """Where images are judged, not a generator."""
    if "generator" in request.metric.needs:
        raise UserError("needs a generator, and there are only images; give --network, or choose FID, KID, PR or IS")
    if request.metric.reals and not opts.dataset_kwargs:
        raise UserError("needs the real images to compare with; give --data")
    images = opts.images()
    flag = f"--images={opts.images_kwargs['path']}"
    if len(images) < request.num_samples:
        raise UserError(f"{flag}: {len(images)} images, and {request.num_samples} are needed; give more, or --samples={len(images)}")
    if request.metric.reals and images.image_shape[1:] != opts.dataset().image_shape[1:]:
        raise UserError(f"{flag}: the images are {_size(images)}, those of --data={opts.dataset_kwargs['path']} {_size(opts.dataset())}; resize them first")


def _check_minimum(opts: MetricOptions, request: Request) -> None:
    least = request.metric.minimum
    if request.num_samples < least:
        raise UserError(f"is defined for {least} images or more; raise --samples={request.num_samples}")
    if request.metric.reals and opts.dataset_kwargs and len(opts.dataset()) < least:
        raise UserError(f"is defined for {least} real images or more, and {opts.dataset_kwargs['path']} has {len(opts.dataset())}; give more data")


def _size(dataset: Any) -> str:
    _, height, width = dataset.image_shape
    return f"{width} wide and {height} high"


def moves_its_image(G: torch.nn.Module) -> bool:
    """Has it a user's transform, as StyleGAN3's networks have?"""
    return isinstance(getattr(getattr(G.synthesis, "input", None), "transform", None), torch.Tensor)


def check_reals(opts: MetricOptions, request: Request) -> None:
    """For metrics that compare as many real as generated images."""
    have = len(opts.dataset())
    if have < request.num_samples:
        raise UserError(f"compares with {request.num_samples} real images, and {opts.dataset_kwargs['path']} has {have}; give --samples={have}, or "
                        "choose the _full metric, which takes all there are")


# ---------------------------------------------------------------------------------------------------------------------
# Computing and reporting.

def calc_metric(metric: str, **kwargs: Any) -> EasyDict:
    """Computes the metric of that name. kwargs: fields of MetricOptions. Every process of num_gpus calls it.

    Returns dict(results, metric, total_time [s], total_time_str, num_gpus). Torch's global generators are left as they were.
    """
    request = find_metric(metric)
    assert request is not None, f"{metric!r} is not among {list_valid_metrics()}"
    opts = replace(MetricOptions(**kwargs), metric=request.name, num_samples=request.num_samples, broken=[])
    if opts.G is not None and opts.G.training:
        opts.G = copy.deepcopy(opts.G).eval()           # the caller's stays as it is
    start = time.time()
    memo = (request.metric.shared, request.num_samples)
    if request.metric.shared is None or memo not in opts.shared:
        with torch.no_grad(), preserve_rng(opts.device):
            found = broadcast_object(opts, request.metric.function(opts))
        opts.shared[memo] = _without_broken_numbers(opts, found)
    results = dict(opts.shared[memo])
    seconds = time.time() - start
    return EasyDict(results=EasyDict(results), metric=request.name, total_time=seconds, total_time_str=dnnlib.util.format_time(seconds),
                    num_gpus=opts.num_gpus)


def _without_broken_numbers(opts: MetricOptions, found: dict) -> dict:
    """Numbers as float; nan, all of them, with a note, where some of the generated images are not finite: what follows from such images says nothing.

    A network that has diverged must not end a training run.
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
