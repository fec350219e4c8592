"""The metrics: a table with a row each, and how they are asked for, checked, computed and reported.

A name may hold the number of generated images: fid50k_full, fid1k_full, ppl2_wend (50000 where none is said), ppl2_wend1k.
`--samples=1000` puts that number into all names.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

import dnnlib
from dnnlib.util import EasyDict, UserError, closest
from metrics import detectors
from metrics.options import MetricOptions
from metrics.samples import preserve_rng

# Importing one of these fills in its rows.
METRIC_MODULES = ("frechet_inception_distance", "kernel_inception_distance", "precision_recall", "inception_score", "perceptual_path_length",
                  "equivariance", "pose_error", "view_consistency", "fid_by_yaw")

NEEDS = ("generator", "cameras", "stylegan3")


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    name:           str                                 # {count} stands where the number of images goes.
    function:       Callable[[MetricOptions], dict]     # -> results by name: numbers, or text that explains one
    samples:        int | None          = None          # Number of images where the user says none. None: the metric has no such number.
    count_optional: bool                = False         # Is the name without a number the one with `samples`?
    detectors:      tuple[tuple[str, str], ...] = ()    # (kind, use), see metrics.detectors.KINDS.
    needs:          tuple[str, ...]     = ()            # Of NEEDS.
    reals:          bool                = True          # Does it look at the real images?
    minimum:        int                 = 1             # Fewest images, of either kind, that it is defined for.
    check:          Callable[[MetricOptions, Request], None] | None = None      # Further conditions: raises UserError.
    shared:         str | None          = None          # Rows with the same word are one computation.

    def name_for(self, count: int) -> str:
        return self.name.replace("{count}", "" if self.count_optional and count == self.samples else format_count(count))


@dataclass(frozen=True)
class Request:
    """A metric that somebody asked for."""

    metric: Metric
    num_samples: int                     # 0: the metric has no such number

    @property
    def name(self) -> str:
        return self.metric.name_for(self.num_samples)


_metrics: dict[str, Metric] = {}


def register_metric(function: Callable | None = None, *, name: str | None = None, **row: Any) -> Callable:
    """Decorator that adds a row to the table: fields of `Metric`. Bare, the metric is called like the function."""
    if function is None:
        return lambda decorated: register_metric(decorated, name=name, **row)
    name = name or function.__name__
    assert ("{count}" in name) == (row.get("samples") is not None), f"{name}: give samples where there is a {{count}}, and only there"
    assert set(row.get("needs", ())) <= set(NEEDS), row["needs"]
    _metrics[name] = Metric(name, function, **row)
    return function


def metrics() -> dict[str, Metric]:
    """The table: pattern of the name -> row."""
    for module in METRIC_MODULES:
        if importlib.util.find_spec(f"metrics.{module}") is not None:
            importlib.import_module(f"metrics.{module}")
    return _metrics


# ---------------------------------------------------------------------------------------------------------------------
# Names.

def format_count(count: int) -> str:
    """50000 -> '50k', 1234 -> '1234'."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def find_metric(name: str, samples: int | None = None) -> Request | None:
    """The row and the number of images that the name stands for, or None. `samples` replaces the number."""
    for row in metrics().values():
        optional = "?" if row.count_optional else ""
        pattern = re.escape(row.name).replace(re.escape("{count}"), rf"([1-9]\d*k?){optional}")
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        if row.samples is None:
            return Request(row, 0)
        text = match.group(1)
        count = row.samples if text is None else int(text.rstrip("k")) * (1000 if text.endswith("k") else 1)
        return Request(row, samples or count)
    return None


def is_valid_metric(metric: str) -> bool:
    return find_metric(metric) is not None


def list_valid_metrics() -> list[str]:
    """Names with their usual numbers of images; other numbers are valid too."""
    return [row.name_for(row.samples or 0) for row in metrics().values()]


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

def check_metrics(names: Iterable[str], opts: MetricOptions, samples: int | None = None, fetch: bool = False) -> list[Request]:
    """The requests, if every one of them can be computed with these options; else UserError, one line. Before any work.

    opts.G may be on the meta device: only what kind of network it is counts. `fetch`: download published detectors that are missing.
    """
    requests = parse_metrics(names, samples)
    for request in requests:
        with _naming(request):
            _check_needs(opts, request)
            _check_minimum(opts, request)
            if request.metric.check is not None:
                request.metric.check(opts, request)
    for request in requests:
        with _naming(request):
            for kind, use in request.metric.detectors:
                if fetch and kind not in opts.detectors and not opts.detector_files and detectors.KINDS[kind].automatic:
                    detectors.prepare(kind, opts.dataset_kwargs)
                detectors.check(kind, use, opts.detector_path(kind, use))
    return requests


@contextlib.contextmanager
def _naming(request: Request) -> Iterator[None]:
    """A UserError in it says which metric it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--metrics={request.name}: {error.message}") from error


def _check_needs(opts: MetricOptions, request: Request) -> None:
    G, needs = opts.G, request.metric.needs
    if G is None:
        if "generator" in needs or request.num_samples == 0:
            raise UserError("needs a generator, and there are only images; give --network, or choose FID, KID, PR or IS")
        if request.metric.reals and not opts.dataset_kwargs:
            raise UserError("needs the real images to compare with; give --data")
        if len(opts.images()) < request.num_samples:
            raise UserError(f"needs {request.num_samples} images, and {opts.images_kwargs['path']} has {len(opts.images())}; "
                            f"give more, or --samples={len(opts.images())}")
        if opts.dataset_kwargs and opts.images().image_shape[1:] != opts.dataset().image_shape[1:]:
            raise UserError(f"the images of {opts.images_kwargs['path']} are {_size(opts.images())}, those of {opts.dataset_kwargs['path']} "
                            f"{_size(opts.dataset())}; resize them first")
        return
    if not opts.dataset_kwargs and (request.metric.reals or G.c_dim > 0):
        raise UserError("needs the real images, or their labels; give --data")
    if "stylegan3" in needs and not moves_its_image(G):
        raise UserError(f"equivariance is a property of StyleGAN3's networks, whose image can be moved; this one is {type(G).__module__}.{type(G).__name__}; "
                        "leave the metric out")
    if "cameras" in needs and not (G.c_dim == 25 and opts.dataset().has_camera_labels):
        raise UserError(f"judges cameras, but the labels are no cameras (the network's have {G.c_dim} numbers, the data's {opts.dataset().label_dim}); "
                        "leave the metric out")
    if not opts.dataset_kwargs:
        return
    if G.c_dim > 0 and opts.dataset().label_dim != G.c_dim:
        raise UserError(f"the network's labels have {G.c_dim} numbers, those of {opts.dataset_kwargs['path']} {opts.dataset().label_dim}; "
                        "give the data that it was trained on (--data)")
    if opts.dataset().image_shape != [opts.dataset().num_channels, G.img_resolution, G.img_resolution]:
        raise UserError(f"the network makes images of {G.img_resolution} px, those of {opts.dataset_kwargs['path']} are {_size(opts.dataset())}; "
                        "give data of its size (--data)")


def _check_minimum(opts: MetricOptions, request: Request) -> None:
    least = request.metric.minimum
    if 0 < request.num_samples < least:
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
    opts = replace(MetricOptions(**kwargs), metric=request.name, num_samples=request.num_samples)
    if opts.G is not None:
        assert not opts.G.training, "the generator is in training mode; give G.eval()"
    start = time.time()
    memo = (request.metric.shared, request.num_samples)
    if request.metric.shared is None or memo not in opts.shared:
        with torch.no_grad(), preserve_rng(opts.device):
            opts.shared[memo] = request.metric.function(opts)
    results = {name: value if isinstance(value, str) else float(value) for name, value in opts.shared[memo].items()}
    for name, value in results.items():
        assert isinstance(value, str) or not math.isnan(value), f"{request.name}: {name} is not a number"
    seconds = time.time() - start
    return EasyDict(results=EasyDict(results), metric=request.name, total_time=seconds, total_time_str=dnnlib.util.format_time(seconds),
                    num_gpus=opts.num_gpus)


def report_metric(result_dict: dict, run_dir: str | None = None, snapshot_pkl: str | None = None) -> str:
    """Prints the result as a line of JSON and appends it to metric-NAME.jsonl in `run_dir`. For one process. Returns the line."""
    if run_dir is not None and snapshot_pkl is not None:
        relative = os.path.relpath(snapshot_pkl, run_dir)
        snapshot_pkl = snapshot_pkl if relative.startswith(os.pardir) else relative
    line = json.dumps(dict(result_dict, snapshot_pkl=snapshot_pkl, timestamp=time.time()))
    print(line)
    if run_dir is not None and os.path.isdir(run_dir):
        with open(os.path.join(run_dir, f"metric-{result_dict['metric']}.jsonl"), "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    return line
