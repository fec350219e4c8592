"""What a person watching a run sees: a line per tick, a progress bar, stats.jsonl, TensorBoard events, curves.png."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
from typing import IO, Any

import psutil
import torch
from tqdm import tqdm

import dnnlib
from torch_utils import distributed, training_stats

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
    """Counts images and time. All ranks call it; rank 0 writes."""

    def __init__(self, run_dir: str, device: torch.device, batch_size: int, total_kimg: float, kimg_per_tick: float, state: dict[str, Any] | None = None):
        """state: from get_state() of the process that this one continues; what stats.jsonl has of later ticks is dropped."""
        state = state or dict(cur_nimg=0, tick=0, tick_nimg=0, seconds=0.0, tick_seconds=0.0)
        self.run_dir = run_dir
        self.device = device
        self.batch_size = batch_size
        self.total_nimg = total_kimg * 1000
        self.nimg_per_tick = kimg_per_tick * 1000
        self.cur_nimg, self.tick, self._tick_nimg = state["cur_nimg"], state["tick"], state["tick_nimg"]
        self._snapshot_nimg = state.get("snapshot_nimg")        # None: there is none, or the state of an older version
        self.collector = training_stats.Collector(regex=".*")
        if "reported" in state:
            training_stats.set_state(state["reported"])
            self.collector.set_state(state["collector"])
        self.writes = distributed.get_rank() == 0
        self._start, self._tick_start = time.time() - state["seconds"], time.time() - state["tick_seconds"]
        self._maintenance = 0.0
        self._stats = _open_stats(run_dir, self.tick) if self.writes else None
        self._events = _tensorboard_writer(run_dir, self.cur_nimg // 1000) if self.writes else None
        screen = _screen()
        self._bar = tqdm(total=round(self.total_nimg / 1000, 1), initial=self.cur_nimg / 1000, unit="kimg", file=screen,
                         disable=not (self.writes and screen.isatty()),
                         bar_format="{percentage:3.0f}%|{bar:20}| {n:.1f}/{total:.1f} kimg [{elapsed}<{remaining}{postfix}]", leave=False)

    def get_state(self) -> dict[str, Any]:
        """Counters and statistics. All ranks must call it."""
        now = time.time()
        return dict(cur_nimg=self.cur_nimg, tick=self.tick, tick_nimg=self._tick_nimg, snapshot_nimg=self._snapshot_nimg,
                    seconds=now - self._start, tick_seconds=now - self._tick_start,
                    reported=training_stats.get_state(), collector=self.collector.get_state())

    @property
    def tick_ended(self) -> bool:
        """The first step is a tick, and so is the last."""
        return self.done or self.tick == 0 and self.cur_nimg > 0 or self.cur_nimg >= self._tick_nimg + self.nimg_per_tick

    @property
    def done(self) -> bool:
        return self.cur_nimg >= self.total_nimg

    @property
    def number(self) -> str:
        """What files of this moment are called by: NNNNNN for whole kimg, NNNNNN_III with the images beyond where
        the last snapshot has that name.
        """
        kimg, images = divmod(self.cur_nimg, 1000)
        last = self._snapshot_nimg
        taken = last is not None and last < self.cur_nimg and last // 1000 == kimg
        return f"{kimg:06d}_{images:03d}" if taken else f"{kimg:06d}"

    def advance(self) -> None:
        """After a step."""
        self.cur_nimg += self.batch_size
        self._bar.update(self.batch_size / 1000)
        speed = (self.cur_nimg - self._tick_nimg) / max(time.time() - self._tick_start, 1e-9)
        self._bar.set_postfix_str(f"{speed:.1f} img/s", refresh=False)

    def print_tick(self, augment_p: float, step: int) -> None:
        """StyleGAN's line. All ranks must call it, since the peak memory counters are reset."""
        now = time.time()
        kimg = max(self.cur_nimg - self._tick_nimg, 1) / 1000
        seconds = now - self._tick_start
        report = training_stats.report0
        gib = 2 ** 30
        memory = (0, 0)
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        fields = [
            f"tick {report('Progress/tick', self.tick):<5d}",
            f"kimg {report('Progress/kimg', self.cur_nimg / 1000):<8.1f}",
            f"time {dnnlib.util.format_time(report('Timing/total_sec', now - self._start)):<12s}",
            f"sec/tick {report('Timing/sec_per_tick', seconds):<7.1f}",
            f"sec/kimg {report('Timing/sec_per_kimg', seconds / kimg):<7.2f}",
            f"maintenance {report('Timing/maintenance_sec', self._maintenance):<6.1f}",
            f"cpumem {report('Resources/cpu_mem_gb', psutil.Process().memory_info().rss / gib):<6.2f}",
            f"gpumem {report('Resources/peak_gpu_mem_gb', memory[0] / gib):<6.2f}",
            f"reserved {report('Resources/peak_gpu_mem_reserved_gb', memory[1] / gib):<6.2f}",
            f"augment {report('Progress/augment', augment_p):.3f}",
        ]
        report("Progress/step", step)
        report("Timing/total_hours", (now - self._start) / 3600)
        self._tick_end = now
        if self.writes:
            with tqdm.external_write_mode(file=_screen()):
                print(" ".join(fields))

    def finish_tick(self, metrics: dict[str, float] | None = None, snapshot: bool = False) -> None:
        """After images and networks (`snapshot`) are saved: writes the statistics and starts the next tick."""
        self.collector.update()
        now = time.time()
        if self.writes:
            values = self.collector.as_dict()
            self._stats.write(json.dumps(dict(values, timestamp=now)) + "\n")
            self._stats.flush()
            if self._events is not None:
                for name, value in values.items():
                    self._events.add_scalar(name, value.mean, global_step=int(self.cur_nimg / 1000), walltime=now)
                for name, value in (metrics or {}).items():
                    self._events.add_scalar(f"Metrics/{name}", value, global_step=int(self.cur_nimg / 1000), walltime=now)
                self._events.flush()
        self.tick += 1
        self._snapshot_nimg = self.cur_nimg if snapshot else self._snapshot_nimg
        self._tick_nimg = self.cur_nimg
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
    """The real stderr, past the log file: a progress bar is not for files."""
    return sys.__stderr__ if sys.__stderr__ is not None else sys.stderr


def _open_stats(run_dir: str, tick: int) -> IO:
    """stats.jsonl, to be continued with this tick."""
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
    except UnicodeEncodeError:           # TensorBoard takes names in UTF-8 only, whatever the locale is
        print(f"TensorBoard cannot write into {run_dir}: no event files; stats.jsonl holds all numbers.")
        return None


def read_stats(run_dir: str) -> list[dict]:
    """The records of stats.jsonl; a line that a kill or a power cut has damaged is left out."""
    records = []
    with open(os.path.join(run_dir, "stats.jsonl"), encoding="utf-8", errors="replace") as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                record = dnnlib.util.parse_json(line) if line.endswith("\n") else None
                records += [record] if isinstance(record, dict) else []
    return records


def save_curves(run_dir: str) -> None:
    """Draws stats.jsonl as curves.png; without matplotlib it says so once and draws nothing."""
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
