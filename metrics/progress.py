"""How far it is: a bar on a terminal, a line a minute elsewhere (log files, pipes)."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from dnnlib.util import format_time_brief

FLUSH_INTERVAL = 1000                    # items between two reports of a ProgressMonitor
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


class ProgressMonitor:
    """Reports how far a computation is, as lines on the screen (`verbose`, for what has a `tag`) and as a number: progress_fn(done, total), where done goes
    from pfn_lo to pfn_hi. StyleGAN3's, for metrics written for it.
    """

    def __init__(self,
        tag             = None,             # What is computed; None = no lines.
        num_items       = None,             # Of how many items; None = nobody knows, and progress_fn only hears of the start.
        flush_interval  = FLUSH_INTERVAL,   # Items between two reports.
        verbose         = False,            # Print lines?
        progress_fn     = None,             # (done, total) -> None
        pfn_lo          = 0,
        pfn_hi          = 1000,
        pfn_total       = 1000,
    ):
        self.tag, self.num_items, self.flush_interval, self.verbose = tag, num_items, flush_interval, verbose
        self.progress_fn, self.pfn_lo, self.pfn_hi, self.pfn_total = progress_fn, pfn_lo, pfn_hi, pfn_total
        self._start = time.monotonic()
        self._reported = 0
        if progress_fn is not None:
            progress_fn(pfn_lo, pfn_total)

    def update(self, cur_items: int) -> None:
        """So many items are done by now, counted from the start."""
        assert self.num_items is None or cur_items <= self.num_items, (cur_items, self.num_items)
        if cur_items < self._reported + self.flush_interval and cur_items != self.num_items:
            return
        self._reported = cur_items
        if self.verbose and self.tag is not None:
            total = "" if self.num_items is None else f" of {self.num_items}"
            print(f"{self.tag}: {cur_items}{total} items after {format_time_brief(time.monotonic() - self._start)}")
        if self.progress_fn is not None and self.num_items is not None:
            share = cur_items / max(self.num_items, 1)
            self.progress_fn(self.pfn_lo + (self.pfn_hi - self.pfn_lo) * share, self.pfn_total)

    def sub(self, tag=None, num_items=None, flush_interval=FLUSH_INTERVAL, rel_lo=0, rel_hi=1) -> ProgressMonitor:
        """A monitor of a part, from rel_lo to rel_hi of this one's span."""
        lo, hi = (self.pfn_lo + (self.pfn_hi - self.pfn_lo) * share for share in (rel_lo, rel_hi))
        return ProgressMonitor(tag, num_items, flush_interval, self.verbose, self.progress_fn, lo, hi, self.pfn_total)


class _Both:
    """A bar that tells a monitor as well."""

    def __init__(self, bar: Any, monitor: ProgressMonitor):
        self.bar, self.monitor, self.done = bar, monitor, 0

    def __enter__(self) -> _Both:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)

    def update(self, count: int = 1) -> None:
        self.bar.update(count)
        self.done = min(self.done + count, self.monitor.num_items)
        self.monitor.update(self.done)


def progress(total: int, what: str, unit: str = "img", shown: bool = True, monitor: ProgressMonitor | None = None) -> Any:
    """A context manager with `update(count)`, for `total` things. `shown` False: says nothing. A monitor's progress_fn hears of it, too."""
    if monitor is not None and monitor.progress_fn is not None:
        return _Both(progress(total, what, unit, shown), monitor.sub(num_items=total))
    if shown and not sys.stderr.isatty():
        return LineProgress(total, what, unit)
    return tqdm(total=total, desc=what, unit=unit, leave=False, smoothing=0.05, disable=not shown)
