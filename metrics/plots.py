"""Draws the metrics of a run over its snapshots."""

from __future__ import annotations

import glob
import json
import math
import os
import re

from dnnlib.util import UserError, open_whole

Curve = list[tuple[float, float]]


def read_curves(run_dir: str) -> dict[str, dict[str, Curve]]:
    """metric -> name of the number -> (kimg, value) in the order of kimg; of several lines about one snapshot the last one counts."""
    curves: dict[str, dict[str, Curve]] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(run_dir), "metric-*.jsonl"))):
        points: dict[str, dict[float, float]] = {}
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                if not line.endswith("\n"):             # a kill cut it short
                    continue
                record = json.loads(line)
                match = re.search(r"(\d+)\.pkl$", record.get("snapshot_pkl") or "")
                for key, value in record["results"].items() if match else ():
                    if not isinstance(value, str) and math.isfinite(value):
                        points.setdefault(key, {})[float(match.group(1))] = value
        if points:
            name = os.path.basename(path).removeprefix("metric-").removesuffix(".jsonl")
            curves[name] = {key: sorted(values.items()) for key, values in points.items()}
    return curves


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
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (metric, lines) in zip(panels, curves.items()):
        for key, points in lines.items():
            axes.plot(*zip(*points), marker="o", markersize=3, label=key)
        axes.set_title(metric)
        axes.set_xlabel("kimg")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    for axes in panels[len(curves):]:
        axes.set_visible(False)
    path = os.path.join(run_dir, "metrics.png")
    with open_whole(path) as stream:
        FigureCanvasAgg(figure).print_png(stream)
    return path
