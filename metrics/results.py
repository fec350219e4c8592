"""Results of metrics: lines of JSON on the screen and in files, and curves over the snapshots of a run."""

from __future__ import annotations

import glob
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

from dnnlib.util import UserError, open_whole, parse_json
from metrics.table import find_metric
from training.run.state import images_of

Curve = list[tuple[float, float]]


def report_metric(result_dict: dict, run_dir: str | None = None, snapshot_pkl: str | None = None) -> str:
    """Prints what calc_metric returned as a line of JSON, adds it to metric-NAME.jsonl of the run folder, returns it.

    NaN and infinity are written as null. If the file cannot be written, says so and goes on. Call on one rank.
    """
    line = json.dumps(record_of(result_dict, run_dir, snapshot_pkl), allow_nan=False)
    print(line)
    if run_dir is not None and os.path.isdir(run_dir):
        path = os.path.join(run_dir, f"metric-{result_dict['metric']}.jsonl")
        try:
            append_line(path, line)
        except OSError as error:
            print(f"{path}: cannot be written ({error.strerror or error}); the result is on the screen only")
    return line


def record_of(result_dict: dict, run_dir: str | None, snapshot_pkl: str | None) -> dict[str, Any]:
    """The result with the time and the snapshot's path, which is relative to run_dir if the file lies there."""
    results = {name: None if isinstance(value, float) and not math.isfinite(value) else value
               for name, value in result_dict["results"].items()}
    if run_dir is not None and snapshot_pkl is not None:
        folder, file = (os.path.abspath(path) for path in (run_dir, snapshot_pkl))
        if os.path.commonpath([folder, file]) == folder:
            snapshot_pkl = os.path.relpath(file, folder)
    return {**result_dict, "results": results, "snapshot_pkl": snapshot_pkl, "timestamp": time.time()}


def append_line(path: str, line: str) -> None:
    """Adds a line to the file. Ends a last line that a kill has cut short first, so that only that line is lost."""
    with open(path, "a+b") as stream:                   # in this mode writing always goes to the end
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - 1, 0))
        cut = stream.read(1) not in (b"", b"\n")
        stream.write((b"\n" if cut else b"") + line.encode() + b"\n")


def read_curves(run_dir: str) -> dict[str, dict[str, Curve]]:
    """metric -> name of a number -> (kimg, value) in the order of kimg.

    A number that two files hold (those of pose_error and view_consistency do) comes once. Of several values for one
    snapshot the latest counts. Values that are not finite are left out.
    """
    found: dict[str, dict[str, dict[float, float]]] = {}
    for metric, record in sorted(_records(run_dir), key=lambda pair: pair[1].get("timestamp") or 0):
        images = images_of(record.get("snapshot_pkl") or "")
        for key, value in record["results"].items() if images is not None else ():
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(metric_of(key, metric), {}).setdefault(key, {})[images / 1000] = value
    return {metric: {key: sorted(points.items()) for key, points in found[metric].items()} for metric in sorted(found)}


def metric_of(key: str, otherwise: str) -> str:
    """The metric at the beginning of a number's name: 'pose_error1k_median' -> 'pose_error1k'."""
    words = key.split("_")
    names = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((name for name in names if find_metric(name) is not None), otherwise)


def _records(run_dir: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (metric, record) for all lines of the run's metric-NAME.jsonl. Names the lines that it cannot read."""
    for path in sorted(glob.glob(os.path.join(glob.escape(run_dir), "metric-*.jsonl"))):
        name = os.path.basename(path).removeprefix("metric-").removesuffix(".jsonl")
        bad = []
        with open(path, encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    record = parse_json(line)
                    if not isinstance(record, dict) or not isinstance(record.get("results"), dict):
                        raise ValueError("not a record of a result")
                except ValueError:
                    bad.append(number)
                else:
                    yield name, record
        if bad:
            print(f"{path}: left out what cannot be read, {'line' if len(bad) == 1 else 'lines'} "
                  f"{', '.join(map(str, bad))} (cut short by a kill?)")


def plot_run(run_dir: str) -> str:
    """Writes metrics.png, a panel per metric, into the run folder and returns its path. UserError without results."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot: needs matplotlib; pip install matplotlib") from error
    curves = read_curves(run_dir)
    if not curves:
        raise UserError(f"--plot: {run_dir} holds no metric-*.jsonl with results of network-snapshot-NNNNNN.pkl files; "
                        "compute metrics of its snapshots first")
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
    """Draws one panel. Yardsticks, which hardly change between snapshots, are dashed."""
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
    if len(lines) > 1:                                  # beside the panel, so that it covers no curve
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
