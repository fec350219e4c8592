"""`MetricOptions`: what a metric is computed from, and how its progress is reported."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dnnlib import cli
from dnnlib.util import EasyDict, UserError, closest, format_time_brief
from metrics import detectors as detector_files
from training.dataset import open_stored

MAPPING_KWARGS = ("truncation_psi", "truncation_cutoff")         # arguments of G that its mapping takes
FLUSH_INTERVAL = 1000                    # items between two reports of a ProgressMonitor


@dataclass
class MetricOptions:
    """One generator (or folder of images), one data set, one device. Users set the fields up to `batch_gen`."""

    G: torch.nn.Module | None       = None      # In eval mode on `device`; meta device for checks alone. None: images_kwargs.
    G_kwargs: dict                  = field(default_factory=dict)       # For each call of G, such as truncation_psi.
    dataset_kwargs: dict            = field(default_factory=dict)       # Of the real images, with class_name.
    num_gpus: int                   = 1         # Processes that share the work.
    rank: int                       = 0         # Number of this process.
    device: torch.device | str | None = None    # None: CUDA device number `rank` if there is one, else the CPU.
    progress: Any                   = True      # False or None: print none. Or a ProgressMonitor.
    cache: bool                     = True      # Keep statistics of real images on disk.
    seed: int                       = 0         # All random draws derive from it.
    detectors: dict[str, str]       = field(default_factory=dict)       # Kind -> file. Other kinds come from the cache.
    detector_files: tuple[str, ...] = ()        # Files without a kind: each kind takes the first that suits it.
    images_kwargs: dict | None      = None      # Images to judge instead of a generator's; like dataset_kwargs.
    batch_gen: int                  = 4         # Images per pass. Changes the samples: layer noise is drawn per pass.
    metric: str                     = ""        # Full name of the metric. calc_metric sets it, and
    num_samples: int                = 0         # its number of images.
    shared: dict                    = field(default_factory=dict)       # Results of rows of the table with the same `shared`.
    opened: dict                    = field(default_factory=dict)       # Data sets and detectors in use.
    broken: list[int]               = field(default_factory=list)       # Numbers of images that are not finite, on this rank.

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.num_gpus, (self.rank, self.num_gpus)
        if self.device is None:
            self.device = torch.device("cuda", self.rank) if torch.cuda.is_available() else torch.device("cpu")
        self.device = torch.device(self.device)
        self.G_kwargs, self.dataset_kwargs = EasyDict(self.G_kwargs), EasyDict(self.dataset_kwargs)
        if not isinstance(self.progress, ProgressMonitor) or self.rank > 0:
            self.progress = ProgressMonitor(verbose=bool(self.progress) and self.rank == 0)
        if self.dataset_kwargs.get("max_size") is not None:             # each metric sets its own limit
            self.dataset_kwargs.update(max_size=None)

    def unmirrored(self) -> MetricOptions:
        """These options with the real images not mirrored."""
        return replace(self, dataset_kwargs=dict(self.dataset_kwargs, xflip=False) if self.dataset_kwargs else {})

    def dataset(self) -> Any:
        """The real images with their labels."""
        return self._open(self.dataset_kwargs)

    def images(self) -> Any:
        """The images to judge instead of a generator's."""
        assert self.images_kwargs is not None
        return self._open(self.images_kwargs, "--images")

    def _open(self, kwargs: dict, flag: str = "--data") -> Any:
        key = repr(sorted(kwargs.items()))
        if key not in self.opened:
            try:
                self.opened[key] = open_stored(kwargs)
            except UserError as error:
                raise UserError(_reword_for_metrics(error.message, flag)) from error
        return self.opened[key]

    def split_kwargs(self, **fixed: Any) -> tuple[dict, dict]:
        """G_kwargs for G.mapping and for G.synthesis. fixed: the metric's own arguments of G.synthesis."""
        mapping = {name: value for name, value in self.G_kwargs.items() if name in MAPPING_KWARGS}
        synthesis = {name: value for name, value in self.G_kwargs.items() if name not in MAPPING_KWARGS}
        return mapping, {**synthesis, **fixed}

    def detector_path(self, kind: str, use: str = "features") -> str:
        """The file of that kind. Raises UserError if there is none."""
        return detector_files.find(kind, use, self.detectors, self.detector_files, self.dataset_kwargs)

    def detector(self, kind: str, use: str | dict = "features") -> detector_files.Detector:
        """The detector of that kind, loaded once. use: finds it among `detector_files`."""
        key = (kind, self.detector_path(kind, use if isinstance(use, str) else "features"), str(self.device))
        if key not in self.opened:
            self.opened[key] = detector_files.load(kind, key[1], self.device)
        return self.opened[key]

    def bar(self, total: int, what: str, unit: str = "img") -> Any:
        """Reports progress in `total` images (or other units) on rank 0; see `dnnlib.cli.progress`."""
        what = f"{self.metric}: {what}" if self.metric else what
        bar = cli.progress(total, what, unit, shown=self.progress.verbose)
        return bar if self.progress.progress_fn is None else _MonitoredBar(bar, self.progress.sub(num_items=total))


def detector_options(given: Iterable[str], pose_regressor: str | None = None,
                     embedding: str | None = None) -> dict[str, Any]:
    """The options --detector (FILE or KIND=FILE), --pose-regressor and --embedding as fields of MetricOptions."""
    named: dict[str, str] = {}
    files = []
    for text in given:
        kind, equals, path = text.partition("=")
        if equals and kind in detector_files.KINDS:
            named[kind] = path
        elif equals and re.fullmatch(r"[\w-]*", kind) and not os.path.exists(text):
            known = list(detector_files.KINDS)
            raise UserError(f"--detector={text}: there is no kind of detector called {kind!r}; {closest(kind, known)}"
                            f"there are {', '.join(known)}")
        else:
            files.append(text)
    ours = dict(pose_regressor=pose_regressor, embedding=embedding)
    named.update({kind: path for kind, path in ours.items() if path is not None})
    return dict(detectors=named, detector_files=tuple(files))


def _reword_for_metrics(message: str, flag: str) -> str:
    """A data set's message names options of train.py; this one names those of calc_metrics.py."""
    message = f"{flag}{message.removeprefix('--data')}" if message.startswith("--data=") else message
    if "--cond" not in message:
        return message
    what = re.sub(r" \([^()]*--cond[^()]*\)", "", message).partition("; ")[0]
    return f"{what}; the network takes labels: give data that have them (--data)"


class ProgressMonitor:
    """Reports progress as lines on the screen and as calls of progress_fn(done, total). As in StyleGAN3."""

    def __init__(self,
        tag             = None,             # What is computed, for the lines. None: no lines.
        num_items       = None,             # Number of items. None: unknown, progress_fn is only called at the start.
        flush_interval  = FLUSH_INTERVAL,   # Items between two reports.
        verbose         = False,            # Print lines?
        progress_fn     = None,             # (done, total) -> None; done goes from pfn_lo to pfn_hi.
        pfn_lo          = 0,
        pfn_hi          = 1000,
        pfn_total       = 1000,
    ):
        self.tag, self.num_items, self.flush_interval, self.verbose = tag, num_items, flush_interval, verbose
        self.progress_fn, self.pfn_lo, self.pfn_hi, self.pfn_total = progress_fn, pfn_lo, pfn_hi, pfn_total
        self._start = time.monotonic()
        self._reported = 0
        if progress_fn is not None:
            progress_fn(pfn_lo, pfn_total)

    def update(self, cur_items: int) -> None:
        """cur_items: items done since the start."""
        assert self.num_items is None or cur_items <= self.num_items, (cur_items, self.num_items)
        if cur_items < self._reported + self.flush_interval and cur_items != self.num_items:
            return
        self._reported = cur_items
        if self.verbose and self.tag is not None:
            total = "" if self.num_items is None else f" of {self.num_items}"
            print(f"{self.tag}: {cur_items}{total} items after {format_time_brief(time.monotonic() - self._start)}")
        if self.progress_fn is not None and self.num_items is not None:
            share = cur_items / max(self.num_items, 1)
            self.progress_fn(self.pfn_lo + (self.pfn_hi - self.pfn_lo) * share, self.pfn_total)

    def sub(self, tag=None, num_items=None, flush_interval=FLUSH_INTERVAL, rel_lo=0, rel_hi=1) -> ProgressMonitor:
        """A monitor of a part of the work, from rel_lo to rel_hi of this one's span."""
        lo, hi = (self.pfn_lo + (self.pfn_hi - self.pfn_lo) * share for share in (rel_lo, rel_hi))
        return ProgressMonitor(tag, num_items, flush_interval, self.verbose, self.progress_fn, lo, hi, self.pfn_total)


class _MonitoredBar:
    """A progress bar that also updates a monitor."""

    def __init__(self, bar: Any, monitor: ProgressMonitor):
        self.bar, self.monitor, self.done = bar, monitor, 0

    def __enter__(self) -> _MonitoredBar:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)

    def update(self, count: int = 1) -> None:
        self.bar.update(count)
        self.done = min(self.done + count, self.monitor.num_items)
        self.monitor.update(self.done)
