"""Where the scripts here keep what they measured: CSV files beside them, a row per result, with how to repeat it."""

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


def keep(path: str | None, *rows: dict[str, Any]) -> None:
    """Prints rows that this command measured and, if a path is given, appends them with machine, date and so on."""
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if path is not None:
        append_rows(path, [dict(row, **circumstances()) for row in rows])


def append_rows(path: str, rows: list[dict[str, Any]]) -> None:
    """Earlier rows keep their place; columns that one side lacks stay empty."""
    rows = [*read_rows(path), *rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open_whole(path, text=True) as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: str) -> list[dict[str, str]]:
    """Of a file that may not exist."""
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def circumstances() -> dict[str, str]:
    """Machine, versions, date, commit and command."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=_FOLDER, capture_output=True, text=True)
    command = shlex.join(["python", os.path.join("benchmarks", os.path.basename(sys.argv[0])), *sys.argv[1:]])
    return dict(machine=f"{_cpu()}, {os.cpu_count()} cores", torch=torch.__version__,
                date=datetime.date.today().isoformat(), commit=git.stdout.strip(), command=command)


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            return next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
