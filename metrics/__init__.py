"""Metrics of generators. metric_main is the table of them, metric_utils what they are made of; docs/metrics.md defines each.

Training needs two functions: `prepare` before the first step, `evaluate` at each snapshot.
"""

from metrics.evaluation import evaluate, prepare

__all__ = ["evaluate", "prepare"]
