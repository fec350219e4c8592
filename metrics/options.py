"""`MetricOptions`: all that a metric is computed from, except the metric's own numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dnnlib.util import EasyDict, UserError
from metrics import detectors as detector_files
from metrics.progress import ProgressMonitor, progress
from training.dataset import open_stored

MAPPING_KWARGS = ("truncation_psi", "truncation_cutoff")         # of G's arguments those that its mapping takes


@dataclass
class MetricOptions:
    """One generator (or folder of images), one data set, one device."""

    G: torch.nn.Module | None       = None      # In eval mode on `device`; on the meta device for checks alone. None: none, see images_kwargs.
    G_kwargs: dict                  = field(default_factory=dict)       # For each call of G, such as truncation_psi; see `split_kwargs`.
    dataset_kwargs: dict            = field(default_factory=dict)       # Of the real images, with class_name.
    num_gpus: int                   = 1         # Processes that share the work.
    rank: int                       = 0         # Of this one.
    device: torch.device | str | None = None    # None: CUDA number `rank` where there is some, else the CPU.
    progress: Any                   = True      # Progress bars on a terminal, a line a minute elsewhere; None or False: neither. Or a ProgressMonitor.
    cache: bool                     = True      # Keep statistics of real images on disk.
    seed: int                       = 0         # All draws derive from it.
    detectors: dict[str, str]       = field(default_factory=dict)       # Kind -> file; kinds that are not in it come from the cache.
    detector_files: tuple[str, ...] = ()        # Files without a kind: each kind takes the first that fits.
    images_kwargs: dict | None      = None      # The images to judge instead of a generator's, as dataset_kwargs.
    batch_gen: int                  = 4         # Images per pass. Part of the definition of a sample, as layer noise is drawn per pass.
    metric: str                     = ""        # Full name of the metric being computed, and ...
    num_samples: int                = 0         # ... its number of images; calc_metric sets both.
    shared: dict                    = field(default_factory=dict)       # Results that several names report, by their row's `shared`.
    opened: dict                    = field(default_factory=dict)       # Data sets and detectors in use.
    broken: list[int]               = field(default_factory=list)       # Numbers of generated images that were not finite, on this rank.

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.num_gpus, (self.rank, self.num_gpus)
        if self.device is None:
            self.device = torch.device("cuda", self.rank) if torch.cuda.is_available() else torch.device("cpu")
        self.device = torch.device(self.device)
        self.G_kwargs, self.dataset_kwargs = EasyDict(self.G_kwargs), EasyDict(self.dataset_kwargs)
        if not isinstance(self.progress, ProgressMonitor) or self.rank > 0:
            self.progress = ProgressMonitor(verbose=bool(self.progress) and self.rank == 0)
        if self.dataset_kwargs.get("max_size") is not None:             # metrics choose for themselves
            self.dataset_kwargs.update(max_size=None)

    def unmirrored(self) -> MetricOptions:
        """The same with the real images as they are, even where training mirrors them."""
        return replace(self, dataset_kwargs=dict(self.dataset_kwargs, xflip=False) if self.dataset_kwargs else {})

    def dataset(self) -> Any:
        """The real images with their labels."""
        return self._open(self.dataset_kwargs)

    def images(self) -> Any:
        """The images to judge, where there is no generator."""
        assert self.images_kwargs is not None
        return self._open(self.images_kwargs, "--images")

    def _open(self, kwargs: dict, flag: str = "--data") -> Any:
        key = repr(sorted(kwargs.items()))
        if key not in self.opened:
            try:
                self.opened[key] = open_stored(kwargs)
            except UserError as error:
                raise UserError(_in_words_of_metrics(error.message, flag)) from error
        return self.opened[key]

    def split_kwargs(self, **fixed: Any) -> tuple[dict, dict]:
        """G_kwargs for G.mapping and for G.synthesis, for metrics that call these apart. fixed: what the metric itself says to the synthesis."""
        mapping = {name: value for name, value in self.G_kwargs.items() if name in MAPPING_KWARGS}
        synthesis = {name: value for name, value in self.G_kwargs.items() if name not in MAPPING_KWARGS}
        return mapping, {**synthesis, **fixed}

    def detector_path(self, kind: str, use: str = "features") -> str:
        """The file of that kind. Raises UserError where there is none."""
        return detector_files.find(kind, use, self.detectors, self.detector_files, self.dataset_kwargs)

    def detector(self, kind: str, use: str | dict = "features") -> detector_files.Detector:
        """The network of that kind, loaded once. `use`: for a kind that --detector gives without saying which it is."""
        key = (kind, self.detector_path(kind, use if isinstance(use, str) else "features"), str(self.device))
        if key not in self.opened:
            self.opened[key] = detector_files.load(kind, key[1], self.device)
        return self.opened[key]

    def bar(self, total: int, what: str, unit: str = "img") -> Any:
        """Progress in so many images (or other units); says nothing on ranks other than 0."""
        return progress(total, f"{self.metric}: {what}" if self.metric else what, unit, shown=self.progress.verbose, monitor=self.progress)


def _in_words_of_metrics(message: str, flag: str) -> str:
    """A data set's complaints name the options of train.py."""
    message = f"{flag}{message.removeprefix('--data')}" if message.startswith("--data=") else message
    if "--cond" not in message:
        return message
    what = re.sub(r" \([^()]*--cond[^()]*\)", "", message).partition("; ")[0]
    return f"{what}; the network takes labels: give data that have them (--data)"
