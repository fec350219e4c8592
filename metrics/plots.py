"""Draws the metrics of a run over its snapshots."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator
from typing import Any

from dnnlib.util import UserError, open_whole, parse_json
from metrics.metric_main import find_metric
from training.training_state import images_of

Curve = list[tuple[float, float]]


def read_curves(run_dir: str) -> dict[str, dict[str, Curve]]:
    """metric -> name of the number -> (kimg, value) in the order of kimg.

    Numbers that two files hold (pose_error and view_consistency each tell both) come once. Of several about one snapshot the latest counts; those that
    are not finite are left out.
    """
    found: dict[str, dict[str, dict[float, float]]] = {}
    for metric, record in sorted(_records(run_dir), key=lambda pair: pair[1].get("timestamp") or 0):
        images = images_of(record.get("snapshot_pkl") or "")
        for key, value in record["results"].items() if images is not None else ():
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(metric_of(key, metric), {}).setdefault(key, {})[images / 1000] = value
    return {metric: {key: sorted(points.items()) for key, points in found[metric].items()} for metric in sorted(found)}


def metric_of(key: str, otherwise: str) -> str:
    """The metric whose name a number's name begins with: 'pose_error1k_median' -> 'pose_error1k'."""
    words = key.split("_")
    names = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((name for name in names if find_metric(name) is not None), otherwise)


def _records(run_dir: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(metric, record) of all lines that can be read; says which cannot."""
    for path in sorted(glob.glob(os.path.join(glob.escape(run_dir), "metric-*.jsonl"))):
        name = os.path.basename(path).removeprefix("metric-").removesuffix(".jsonl")
        bad = []
        with open(path, encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    record = parse_json(line)
                    if not isinstance(record, dict) or not isinstance(record.get("results"), dict):
                        raise ValueError("no record of a result")
                except ValueError:
                    bad.append(number)
                else:
                    yield name, record
        if bad:
            print(f"{path}: left out what cannot be read, {'line' if len(bad) == 1 else 'lines'} {', '.join(map(str, bad))} (cut short by a kill?)")


# ---------------------------------------------------------------------------------------------------------------------

def plot_run(run_dir: str) -> str:
    """Writes metrics.png into the run folder: a panel per metric. Returns its path. Raises UserError where there is nothing to draw."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot: needs matplotlib; pip install matplotlib") from error
    curves = read_curves(run_dir)
    if not curves:
        raise UserError(f"--plot: {run_dir} holds no metric-*.jsonl with results of network-snapshot-NNNNNN.pkl files; compute metrics of its snapshots first")
    columns = min(len(curves), 2)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(6.5 * columns, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (metric, lines) in zip(panels, curves.items()):
        _draw(axes, metric, lines)
    for axes in panels[len(curves):]:
        axes.set_visible(False)
    path = os.path.join(run_dir, "metrics.png")
    with open_whole(path) as stream:
        FigureCanvasAgg(figure).print_png(stream)
    return path


def _draw(axes: Any, metric: str, lines: dict[str, Curve]) -> None:
    """One panel. Yardsticks, which hardly change from snapshot to snapshot, are dashed."""
    for key, points in lines.items():
        label = key.removeprefix(metric).removeprefix("_") or metric
        yardstick = label in ("real", "real_ratio", "chance", "shuffled")
        axes.plot(*zip(*points), marker="o", markersize=3, label=label, linestyle="--" if yardstick else "-")
    axes.set_title(metric)
    axes.set_xlabel("kimg")
    request = find_metric(metric)
    if request is not None and request.metric.unit:
        axes.set_ylabel(request.metric.unit)
    axes.grid(alpha=0.3)
    if len(lines) > 1:                                  # beside the panel, where no curve is
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
