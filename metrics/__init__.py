"""Metrics of generators. metric_main is the table of them, metric_utils what they are made of; docs/metrics.md defines each.

A command needs `detector_options`, what it was told about detectors; training `prepare` before the first step and `evaluate` at each snapshot.
"""

from metrics.evaluation import detector_options, evaluate, prepare

__all__ = ["detector_options", "evaluate", "prepare"]
