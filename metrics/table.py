"""The table of all metrics, and what their names mean.

A name with {count} holds the number of generated images: fid50k_full, fid1k_full, ppl2_wend1k. Some names may leave it
out: ppl2_wend is ppl2_wend50k. `--samples=1000` puts that number into all names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dnnlib.util import UserError, closest
from metrics.camera_metrics import POSE, SCENE, camera_metrics, check_views
from metrics.equivariance import check_resolution, eqr, eqt_frac, eqt_int
from metrics.fid_by_yaw import check_bins, fid_by_yaw
from metrics.frechet_inception_distance import fid, fid_full
from metrics.inception_score import NUM_SPLITS, compute_is
from metrics.kernel_inception_distance import kid, kid_full
from metrics.metric_utils import check_reals
from metrics.options import MetricOptions
from metrics.perceptual_path_length import ppl2_wend
from metrics.precision_recall import NEIGHBOURS, pr, pr_full

NEEDS = ("generator", "cameras", "stylegan3")


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    name:           str
    function:       Callable[[MetricOptions], dict]     # -> results by name: numbers, or text that explains one.
    samples:        int                                 # Usual number of generated images.
    count_optional: bool                = False         # May the name leave out the usual number?
    detectors:      tuple[tuple[str, str], ...] = ()    # (kind, use), see metrics.detectors.KINDS.
    needs:          tuple[str, ...]     = ()            # Of NEEDS.
    reals:          bool                = True          # Does it look at the real images?
    minimum:        int                 = 1             # Smallest number of generated, and of real, images.
    check:          Callable[[MetricOptions], None] | None = None       # Raises UserError for what it cannot measure.
    shared:         str | None          = None          # Rows with the same word here are one computation.
    unit:           str                 = ""            # Of its numbers.

    def __post_init__(self) -> None:
        assert set(self.needs) <= set(NEEDS), self.needs

    def name_for(self, count: int) -> str:
        """The full name for that number of images."""
        left_out = self.count_optional and count == self.samples
        return self.name.replace("{count}", "" if left_out else format_count(count))


INCEPTION, INCEPTION_PROBS = ("inception", "features"), ("inception", "probabilities")
VGG16, LPIPS = ("vgg16", "features"), ("vgg16", "lpips")
ON_CAMERAS = dict(needs=("generator", "cameras"), count_optional=True)
BOTH_VIEWS = dict(ON_CAMERAS, detectors=(POSE, SCENE), check=check_views, shared="camera")
MOVES = dict(needs=("generator", "stylegan3"), reals=False, check=check_resolution, unit="dB")

TABLE = {row.name: row for row in [
    #      name                       function        samples
    Metric("fid{count}_full",         fid_full,       50000, detectors=(INCEPTION,), minimum=2),
    Metric("fid{count}",              fid,            50000, detectors=(INCEPTION,), minimum=2, check=check_reals),
    Metric("kid{count}_full",         kid_full,       50000, detectors=(INCEPTION,), minimum=2),
    Metric("kid{count}",              kid,            50000, detectors=(INCEPTION,), minimum=2, check=check_reals),
    Metric("pr{count}3_full",         pr_full,        50000, detectors=(VGG16,), minimum=NEIGHBOURS + 1),
    Metric("pr{count}3",              pr,             50000, detectors=(VGG16,), minimum=NEIGHBOURS + 1, check=check_reals),
    Metric("is{count}",               compute_is,     50000, detectors=(INCEPTION_PROBS,), minimum=NUM_SPLITS, reals=False),
    Metric("ppl2_wend{count}",        ppl2_wend,      50000, detectors=(LPIPS,), needs=("generator",), reals=False, count_optional=True),
    Metric("eqt{count}_int",          eqt_int,        50000, **MOVES),
    Metric("eqt{count}_frac",         eqt_frac,       50000, **MOVES),
    Metric("eqr{count}",              eqr,            50000, **MOVES),
    Metric("pose_error{count}",       camera_metrics, 10000, **BOTH_VIEWS, unit="deg"),
    Metric("view_consistency{count}", camera_metrics, 10000, **BOTH_VIEWS),
    Metric("fid_by_yaw{count}",       fid_by_yaw,     50000, **ON_CAMERAS, detectors=(INCEPTION,), check=check_bins),
]}


def register_metric(name: str | Callable, **row: Any) -> Callable:
    """Decorator that adds a metric of the user's to the table.

    Without arguments, as in StyleGAN3, it registers a function (opts) -> dict under the function's name; nothing is
    checked before it is called. With a name that contains {count}, `row` are further fields of `Metric`.
    """
    if callable(name):
        TABLE[name.__name__] = Metric(name.__name__, name, samples=0, minimum=0, reals=False)
        return name
    assert "{count}" in name, f"{name}: lacks {{count}}, the place of the number of images"

    def add(function: Callable[[MetricOptions], dict]) -> Callable[[MetricOptions], dict]:
        TABLE[name] = Metric(name, function, **row)
        return function

    return add


@dataclass(frozen=True)
class Request:
    """A metric with its number of images."""

    metric: Metric
    num_samples: int

    @property
    def name(self) -> str:
        return self.metric.name_for(self.num_samples)


def format_count(count: int) -> str:
    """50000 -> '50k', 1234 -> '1234'."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def find_metric(name: str, samples: int | None = None) -> Request | None:
    """The metric and the number of images that a name stands for, or None. samples: takes the place of the number."""
    if name in TABLE:                                   # a name without a number
        return Request(TABLE[name], 0)
    for row in TABLE.values():
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
    """All metrics under their names for the usual numbers of images. Names with other numbers are valid too."""
    return [row.name_for(row.samples) for row in TABLE.values()]


def parse_metrics(names: Iterable[str], samples: int | None = None) -> list[Request]:
    """The metrics that the names stand for, without repetitions. Raises UserError for an unknown name."""
    requests: dict[str, Request] = {}
    for name in names:
        request = find_metric(name, samples)
        if request is None:
            known = list_valid_metrics()
            raise UserError(f"--metrics={name}: there is no such metric; {closest(name, known)}there are "
                            f"{', '.join(known)}")
        requests.setdefault(request.name, request)
    return list(requests.values())
