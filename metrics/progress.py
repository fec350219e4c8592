"""How far it is: a bar on a terminal, a line a minute elsewhere (log files, pipes)."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from dnnlib.util import format_time_brief

INTERVAL_S = 60                          # between two lines


class LineProgress:
    """Prints a line to stderr once a minute; nothing about what takes less."""

    def __init__(self, total: int, what: str, unit: str):
        self.total, self.what, self.unit = total, what, unit
        self.done = 0
        self.start = self.last = time.monotonic()

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        self.done = min(self.done + count, self.total)
        now = time.monotonic()
        if now - self.last >= INTERVAL_S:
            self.last = now
            print(f"{self.what}: {self.done} of {self.total} {self.unit} ({100 * self.done / max(self.total, 1):.0f} %) after "
                  f"{format_time_brief(now - self.start)}", file=sys.stderr, flush=True)


def progress(total: int, what: str, unit: str = "img", shown: bool = True) -> Any:
    """A context manager with `update(count)`, for `total` things. `shown` False: says nothing."""
    if shown and not sys.stderr.isatty():
        return LineProgress(total, what, unit)
    return tqdm(total=total, desc=what, unit=unit, leave=False, smoothing=0.05, disable=not shown)
