"""Where the scripts here keep what they measured: CSV files beside them, a row for each result, with what it takes to make it again."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import shlex
import subprocess
import sys
from typing import Any

import torch

from dnnlib.util import open_whole

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def save_rows(path: str, rows: list[dict[str, Any]]) -> None:
    """Appends what this very command measured, with machine, versions, date and commit."""
    append_rows(path, [dict(row, **circumstances()) for row in rows])


def append_rows(path: str, rows: list[dict[str, Any]]) -> None:
    """Rows of before keep their place, columns that one side lacks stay empty."""
    if os.path.exists(path):
        with open(path, newline="", encoding="utf-8") as stream:
            rows = [*csv.DictReader(stream), *rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open_whole(path, text=True) as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def circumstances() -> dict[str, str]:
    """Machine, versions, date, commit and command."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=_FOLDER, capture_output=True, text=True).stdout.strip()
    command = shlex.join(["python", os.path.join("benchmarks", os.path.basename(sys.argv[0])), *sys.argv[1:]])
    return dict(machine=f"{_cpu()}, {os.cpu_count()} cores", torch=torch.__version__, date=datetime.date.today().isoformat(), commit=commit, command=command)


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            return next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
