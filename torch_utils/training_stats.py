"""Running means of named scalars, summed over processes when they are read.

`report` costs a few operations on the value's own device and never synchronises it; a `Collector` sees what was
reported between two of its updates.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib import EasyDict
from torch_utils import distributed

_NUM_MOMENTS = 3                         # count, sum, sum of squares
_pending: dict[str, Tensor] = {}         # name -> moments since the last sync, on the reporting device
_totals: dict[str, Tensor] = {}          # name -> moments of all processes since the start, float64 on the CPU
_process: tuple[int, Any] | None = None  # what init_multiprocessing said; None: torch.distributed knows


def init_multiprocessing(rank: int | None, sync_device: torch.device | str | None) -> None:
    """For scripts that number their processes themselves. Not needed if torch.distributed is set up.

    rank: of this process; None: torch.distributed's. sync_device: where sums over processes are made; None: no sums.
    """
    global _process
    _process = None if rank is None else (rank, sync_device)


def report(name: str, value: Any) -> Any:
    """Adds all elements of `value` (a tensor, an array or a number) to the statistic `name`. Returns `value`.

    Every process must report the same names in between two updates of a Collector.
    """
    elements = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64).detach().flatten()
    elements = elements.to(torch.float64 if elements.device.type == "cpu" else torch.float32)
    moments = torch.stack([torch.ones_like(elements).sum(), elements.sum(), elements.square().sum()])
    _pending[name] = _pending[name] + moments.to(_pending[name].device) if name in _pending else moments
    return value


def report0(name: str, value: Any) -> Any:
    """Like `report`, but only counts what rank 0 reports."""
    report(name, value if (distributed.get_rank() if _process is None else _process[0]) == 0 else [])
    return value


def reset() -> None:
    """Forgets everything; for tests and for several runs in one process."""
    set_state({})


def get_state() -> dict[str, Tensor]:
    """What all processes have reported since the start. All processes must call it."""
    _sync()
    return dict(_totals)


def set_state(totals: dict[str, Tensor]) -> None:
    """Restores the result of `get_state`, perhaps of another process."""
    _pending.clear()
    _totals.clear()
    _totals.update(totals)
    default_collector.set_state(dict(seen=totals, moments={}))


class Collector:
    """Means and deviations of the statistics whose names match `regex`, between its last two updates."""

    def __init__(self, regex: str = ".*", keep_previous: bool = True):
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous             # Return the last values if nothing new was reported?
        self._seen: dict[str, Tensor] = {}
        self._moments: dict[str, Tensor] = {}
        self.update()
        self._moments.clear()

    def names(self) -> list[str]:
        """All that was reported since this collector was made."""
        return list(self._moments)

    def update(self) -> None:
        """Takes in what all processes have reported by now. All processes must call it."""
        if not self._keep_previous:
            self._moments.clear()
        _sync()
        for name in filter(self._regex.fullmatch, _totals):
            fresh = _totals[name] - self._seen.get(name, torch.zeros(_NUM_MOMENTS, dtype=torch.float64))
            self._seen[name] = _totals[name].clone()
            if float(fresh[0]) != 0:
                self._moments[name] = fresh

    def get_state(self) -> dict[str, dict[str, Tensor]]:
        """For set_state(), beside that of the module."""
        return dict(seen=dict(self._seen), moments=dict(self._moments))

    def set_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        self._seen, self._moments = dict(state["seen"]), dict(state["moments"])

    def num(self, name: str) -> int:
        return int(self._of(name)[0])

    def mean(self, name: str) -> float:
        """NaN if nothing was reported."""
        count, total, _ = self._of(name).tolist()
        return total / count if count else float("nan")

    def std(self, name: str) -> float:
        count, total, squares = self._of(name).tolist()
        if not count or not np.isfinite(total):
            return float("nan")
        return 0.0 if count == 1 else float(np.sqrt(max(squares / count - (total / count) ** 2, 0)))

    def as_dict(self) -> EasyDict:
        """name -> EasyDict(num, mean, std)."""
        return EasyDict({name: EasyDict(num=self.num(name), mean=self.mean(name), std=self.std(name))
                         for name in self.names()})

    def __getitem__(self, name: str) -> float:
        return self.mean(name)

    def _of(self, name: str) -> torch.Tensor:
        assert self._regex.fullmatch(name), f"this collector does not watch {name!r}"
        return self._moments.get(name, torch.zeros(_NUM_MOMENTS, dtype=torch.float64))


def _sync() -> None:
    """Adds what is pending to the totals, over all processes with one message."""
    if not _pending:
        return
    names = sorted(_pending)
    device = next((value.device for value in _pending.values() if value.device.type != "cpu"), torch.device("cpu"))
    alone = distributed.get_world_size() == 1
    if _process is not None:
        alone, device = alone or _process[1] is None, torch.device(_process[1] or device)
    dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
    moments = torch.stack([_pending[name].to(device=device, dtype=dtype) for name in names])
    if not alone:
        torch.distributed.all_reduce(moments)
    _pending.clear()
    for name, row in zip(names, moments.to(device="cpu", dtype=torch.float64)):
        _totals[name] = _totals.get(name, torch.zeros(_NUM_MOMENTS, dtype=torch.float64)) + row


default_collector = Collector()          # of all that is reported, for scripts without their own collector
