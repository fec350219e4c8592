"""What a person sees of a run: a line per tick, a progress bar, stats.jsonl, TensorBoard events, curves.png."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
from typing import IO, TYPE_CHECKING, Any

import psutil
import torch
from tqdm import tqdm

import dnnlib
from torch_utils import distributed, training_stats

if TYPE_CHECKING:
    from training.run.state import Counters

_CURVES = (                              # title, statistics
    ("Loss", ("Loss/G/loss", "Loss/D/loss")),
    ("Mean logit", ("Loss/scores/real", "Loss/scores/fake")),
    ("Mean sign of the logit", ("Loss/signs/real", "Loss/signs/fake")),
    ("Regularisers", ("Loss/D/reg", "Loss/G/reg")),
    ("Camera: squared error", ("Loss/D/camera", "Loss/G/camera")),
    ("Augmentation strength p", ("Progress/augment",)),
    ("Seconds per kimg", ("Timing/sec_per_kimg",)),
)


class Status:
    """Reports counters, time and statistics. All ranks call it; rank 0 writes."""

    def __init__(self, run_dir: str, device: torch.device, counters: Counters, state: dict[str, Any] | None = None):
        """state: from get_state() of the process that this one continues. Records of later ticks in stats.jsonl are
        dropped.
        """
        state = state or dict(seconds=0.0, tick_seconds=0.0)
        self.run_dir = run_dir
        self.device = device
        self.counters = counters
        self.collector = training_stats.Collector(regex=".*")
        if "reported" in state:
            training_stats.set_state(state["reported"])
            self.collector.set_state(state["collector"])
        self.writes = distributed.get_rank() == 0
        self._start, self._tick_start = time.time() - state["seconds"], time.time() - state["tick_seconds"]
        self._maintenance = 0.0
        self._stats = _open_stats(run_dir, counters.tick) if self.writes else None
        self._events = _tensorboard_writer(run_dir, counters.cur_nimg // 1000) if self.writes else None
        screen = _screen()
        self._bar = tqdm(total=round(counters.total_nimg / 1000, 1), initial=counters.cur_nimg / 1000, unit="kimg",
                         file=screen, disable=not (self.writes and screen.isatty()), leave=False,
                         bar_format="{percentage:3.0f}%|{bar:20}| {n:.1f}/{total:.1f} kimg "
                                    "[{elapsed}<{remaining}{postfix}]")

    def get_state(self) -> dict[str, Any]:
        """Times and statistics. Call on all ranks."""
        now = time.time()
        return dict(seconds=now - self._start, tick_seconds=now - self._tick_start,
                    reported=training_stats.get_state(), collector=self.collector.get_state())

    def show_progress(self) -> None:
        """Moves the progress bar. Call after each step."""
        counters = self.counters
        self._bar.update(counters.batch_size / 1000)
        speed = (counters.cur_nimg - counters.tick_nimg) / max(time.time() - self._tick_start, 1e-9)
        self._bar.set_postfix_str(f"{speed:.1f} img/s", refresh=False)

    def print_tick(self, augment_p: float) -> None:
        """Prints StyleGAN's line. Call on all ranks: it resets the counters of peak memory."""
        now, counters = time.time(), self.counters
        kimg = max(counters.cur_nimg - counters.tick_nimg, 1) / 1000
        seconds = now - self._tick_start
        report = training_stats.report0
        gib = 2 ** 30
        memory = (0, 0)
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        fields = [
            f"tick {report('Progress/tick', counters.tick):<5d}",
            f"kimg {report('Progress/kimg', counters.cur_nimg / 1000):<8.1f}",
            f"time {dnnlib.util.format_time(report('Timing/total_sec', now - self._start)):<12s}",
            f"sec/tick {report('Timing/sec_per_tick', seconds):<7.1f}",
            f"sec/kimg {report('Timing/sec_per_kimg', seconds / kimg):<7.2f}",
            f"maintenance {report('Timing/maintenance_sec', self._maintenance):<6.1f}",
            f"cpumem {report('Resources/cpu_mem_gb', psutil.Process().memory_info().rss / gib):<6.2f}",
            f"gpumem {report('Resources/peak_gpu_mem_gb', memory[0] / gib):<6.2f}",
            f"reserved {report('Resources/peak_gpu_mem_reserved_gb', memory[1] / gib):<6.2f}",
            f"augment {report('Progress/augment', augment_p):.3f}",
        ]
        report("Progress/step", counters.step)
        report("Timing/total_hours", (now - self._start) / 3600)
        self._tick_end = now
        if self.writes:
            with tqdm.external_write_mode(file=_screen()):
                print(" ".join(fields))

    def finish_tick(self, metrics: dict[str, float] | None = None) -> None:
        """Writes the statistics, after images and networks are saved."""
        self.collector.update()
        now = time.time()
        if self.writes:
            values = self.collector.as_dict()
            self._stats.write(json.dumps(dict(values, timestamp=now)) + "\n")
            self._stats.flush()
            scalars = {name: value.mean for name, value in values.items()}
            scalars.update({f"Metrics/{name}": value for name, value in (metrics or {}).items()})
            for name, value in scalars.items() if self._events is not None else ():
                self._events.add_scalar(name, value, global_step=int(self.counters.cur_nimg / 1000), walltime=now)
            if self._events is not None:
                self._events.flush()
        self._maintenance = now - self._tick_end
        self._tick_start = now

    def save_curves(self) -> None:
        if self.writes:
            save_curves(self.run_dir)

    def close(self) -> None:
        self._bar.close()
        for stream in (self._stats, self._events):
            if stream is not None:
                stream.close()


def _screen() -> Any:
    """The real stderr, not the log file, which a progress bar would fill."""
    return sys.__stderr__ if sys.__stderr__ is not None else sys.stderr


def _open_stats(run_dir: str, tick: int) -> IO:
    """Opens stats.jsonl for records from this tick on."""
    path = os.path.join(run_dir, "stats.jsonl")
    if os.path.exists(path):
        earlier = [record for record in read_stats(run_dir) if record.get("Progress/tick", {}).get("mean", 0) < tick]
        with dnnlib.util.open_whole(path, text=True) as stream:
            stream.writelines(json.dumps(record) + "\n" for record in earlier)
    return open(path, "a", encoding="utf-8")


def _tensorboard_writer(run_dir: str, kimg: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed (pip install tensorboard): no event files; stats.jsonl holds all numbers.")
        return None
    try:
        return SummaryWriter(run_dir, purge_step=kimg or None)
    except UnicodeEncodeError:           # TensorBoard takes UTF-8 names only, in any locale
        print(f"TensorBoard cannot write into {run_dir}: no event files; stats.jsonl holds all numbers.")
        return None


def read_stats(run_dir: str) -> list[dict]:
    """The records of stats.jsonl, without lines that a kill or a power cut has damaged."""
    records = []
    with open(os.path.join(run_dir, "stats.jsonl"), encoding="utf-8", errors="replace") as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                record = dnnlib.util.parse_json(line) if line.endswith("\n") else None
                records += [record] if isinstance(record, dict) else []
    return records


def save_curves(run_dir: str) -> None:
    """Draws stats.jsonl as curves.png. Without matplotlib, says so once and draws nothing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        _say_no_matplotlib()
        return
    records = [r for r in read_stats(run_dir) if "Progress/kimg" in r]
    figure = Figure(figsize=(13, 7), layout="constrained")
    drawn = [(title, names) for title, names in _CURVES if any(name in record for record in records for name in names)]
    for place, (title, names) in enumerate(drawn, start=1):
        axes = figure.add_subplot(2, max(math.ceil(len(drawn) / 2), 3), place)
        for name in names:
            points = [(r["Progress/kimg"]["mean"], r[name]["mean"]) for r in records if name in r]
            if points:
                axes.plot(*zip(*points), label=name.removeprefix("Loss/"))
        axes.set_title(title)
        axes.set_xlabel("kimg")
        axes.grid(alpha=0.3)
        axes.legend()
    with dnnlib.util.open_whole(os.path.join(run_dir, "curves.png")) as stream:
        FigureCanvasAgg(figure).print_png(stream)


@functools.cache
def _say_no_matplotlib() -> None:
    """Once per process."""
    print("matplotlib is not installed (pip install matplotlib): no curves.png; stats.jsonl holds all numbers.")
