"""Results on the screen and in files: a line of JSON each."""

from __future__ import annotations

import json
import math
import os
import time
from typing import Any


def report_metric(result_dict: dict, run_dir: str | None = None, snapshot_pkl: str | None = None) -> str:
    """Prints what calc_metric returned as a line of JSON, and keeps it in metric-NAME.jsonl of the run folder. Returns the line.

    Numbers that are none (nan, infinity) become null. A file that cannot be written is said in a line; the result is on the screen. For one process.
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
    """The result with when and of which file it is; a file in the run folder goes by its name there."""
    results = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in result_dict["results"].items()}
    if run_dir is not None and snapshot_pkl is not None:
        folder, file = (os.path.abspath(path) for path in (run_dir, snapshot_pkl))
        if os.path.commonpath([folder, file]) == folder:
            snapshot_pkl = os.path.relpath(file, folder)
    return {**result_dict, "results": results, "snapshot_pkl": snapshot_pkl, "timestamp": time.time()}


def append_line(path: str, line: str) -> None:
    """Adds a line to the file. Where a kill has cut the last one short, it is ended first, so that it spoils no other."""
    with open(path, "a+b") as stream:                   # whatever is read, writing goes to the end
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - 1, 0))
        cut = stream.read(1) not in (b"", b"\n")
        stream.write((b"\n" if cut else b"") + line.encode() + b"\n")
