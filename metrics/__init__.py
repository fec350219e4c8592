"""Metrics of generators. metrics.table lists them, docs/metrics.md defines them, metric_utils holds their parts."""

from metrics.metric_main import compute, evaluate, prepare
from metrics.options import detector_options

__all__ = ["compute", "detector_options", "evaluate", "prepare"]
