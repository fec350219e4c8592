"""Metrics of a network file, as training and calc_metrics.py both compute them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import torch

import network_files
from dnnlib.util import EasyDict, UserError, closest
from metrics import detectors
from metrics.metric_main import calc_metric, check_metrics, report_metric
from metrics.options import MetricOptions
from torch_utils import distributed


def detector_options(given: Iterable[str], pose_regressor: str | None = None, embedding: str | None = None) -> dict[str, Any]:
    """--detector=FILE and --detector=KIND=FILE, --pose-regressor and --embedding of a command as fields of MetricOptions."""
    named: dict[str, str] = {}
    files = []
    for text in given:
        kind, equals, path = text.partition("=")
        if equals and kind in detectors.KINDS:
            named[kind] = path
        elif equals and re.fullmatch(r"[\w-]*", kind) and not os.path.exists(text):
            known = list(detectors.KINDS)
            raise UserError(f"--detector={text}: there is no kind of detector called {kind!r}; {closest(kind, known)}there are {', '.join(known)}")
        else:
            files.append(text)
    named.update({kind: path for kind, path in (("pose_regressor", pose_regressor), ("embedding", embedding)) if path is not None})
    return dict(detectors=named, detector_files=tuple(files))


def prepare(names: Iterable[str], dataset_kwargs: dict, G: torch.nn.Module, samples: int | None = None, fetch: bool = True,
            absent: list[str] | None = None, **options: Any) -> list[str]:
    """For training, before the first step: can all these metrics be computed? Fetches published detectors that are missing, if `fetch`.

    G: the generator, on any device; the meta device will do. samples: number of images for all metrics; None: as
    their names say. absent: a list to which
    the kinds of missing detectors are added, rather than fetched. options: further fields of MetricOptions (those of
    `detector_options`).
    Returns the full names. Raises UserError, one line: a name that does not exist, a metric that does not fit the network or the data, a detector that
    is missing or wrong. For one process.
    """
    opts = MetricOptions(G=G, dataset_kwargs=dict(dataset_kwargs), device="cpu", **options)
    return [request.name for request in check_metrics(names, opts, samples, fetch and absent is None, absent)]


def evaluate(
    snapshot:       str,                                # Network file.
    run_dir:        str | None,                         # Where metric-NAME.jsonl goes. None: nowhere.
    names:          Iterable[str],
    device:         torch.device | str | None = None,
    **options:      Any,                                # Further fields of MetricOptions.
) -> dict[str, float]:                                  # Numbers by name, the same on all ranks.
    """The metrics of a snapshot, for the training loop. Every process of the run calls it; rank 0 reports.

    Nothing of the caller changes: the network is read anew, and torch's global generators are left as they were.
    """
    networks = network_files.read(snapshot)
    G = networks["G"] if networks["G_ema"] is None else networks["G_ema"]
    opts = dict(options, dataset_kwargs=dict(networks["training_set_kwargs"]), rank=distributed.get_rank(), num_gpus=distributed.get_world_size(),
                device=device)
    results = compute(names, G, run_dir, snapshot, **opts)
    return {key: value for result in results for key, value in result.results.items() if not isinstance(value, str)}


def compute(names: Iterable[str], G: torch.nn.Module | None, run_dir: str | None, snapshot: str | None, **options: Any) -> list[EasyDict]:
    """One calc_metric result for each name, reported on rank 0."""
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
