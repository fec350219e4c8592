"""Processes: their number and ranks, and sums over all of them. All functions also work in a single process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dnnlib import UserError
from dnnlib.util import Screen, usable_cores
from torch_utils import memory, signals


def choose_device(name: str, gpus: int = 1) -> str:
    """'cuda' or 'cpu' for this many processes; 'auto' prefers CUDA. Raises UserError if the machine has too little."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name == "cuda" and available == 0:
        raise UserError("--device=cuda: torch finds no CUDA device on this machine; use --device=cpu")
    if name == "cuda" and gpus > available:
        raise UserError(f"--gpus={gpus}: this machine has {available} CUDA device{'s' if available != 1 else ''}; "
                        "lower --gpus or use --device=cpu")
    if name == "cpu" and gpus > 4 * usable_cores():
        raise UserError(f"--gpus={gpus} on a CPU starts as many processes, and there are {usable_cores()} cores for "
                        "them; lower --gpus")
    return name


def count_devices(name: str) -> int:
    """How many devices of that kind ('cuda' or 'cpu') the machine has: its GPUs, or one CPU."""
    return torch.cuda.device_count() if name == "cuda" else 1


def init(rank: int, world_size: int, device: torch.device, init_method: str | None = None,
         timeout_s: float = 1800) -> None:
    """Joins `world_size` processes: NCCL for tensors on CUDA devices, gloo for others. A single process does nothing.

    init_method: an address as of torch.distributed; None: the environment that torchrun sets.
    """
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=init_method or "env://", rank=rank, world_size=world_size,
                                timeout=timedelta(seconds=timeout_s))


def launch(function: Callable[..., Any], num_processes: int, device: str, *args: Any) -> Any:
    """Calls function(rank, device, *args) in this process, or in `num_processes` new ones that can communicate. Returns
    rank 0's result.

    device: 'cuda' or 'cpu'; the function gets a torch.device of that kind. Function, arguments and result are pickled
    for new processes. A UserError in any of them is raised here. SIGTERM, SIGUSR1, SIGHUP (unless it is ignored) and
    the first SIGINT are passed on to all of them. Raises Interrupted if that ends them before the function handles
    signals.
    """
    if num_processes == 1:
        with signals.handled(dict.fromkeys((*signals.REQUESTS, signal.SIGINT), signals.interrupt)):
            return _run(0, function, 1, device, args)
    signals.start_resource_tracker()
    answers = torch.multiprocessing.get_context("spawn").SimpleQueue()
    address = f"tcp://127.0.0.1:{free_port()}"
    relay = _Relay()
    asked = signals.StopRequest.take_early()            # their loop is to stop
    try:
        with relay.handled():            # before there are processes, so that no request is lost
            spawned = (function, num_processes, device, args, address, answers, asked)
            context = torch.multiprocessing.spawn(_run, args=spawned, nprocs=num_processes, join=False)
            relay.connect(context.pids())
            while not context.join():
                pass
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException):
        if not answers.empty():          # a user's mistake is one line, whichever process found it
            kind, answer = answers.get()
            if kind == "mistake":
                raise UserError(answer) from None
        if relay.number:
            raise signals.Interrupted(relay.number) from None
        raise
    if answers.empty():                  # SIGINT ended a process while it started
        raise signals.Interrupted(relay.number or signal.SIGINT)
    return answers.get()[1]


class _Relay:
    """Hands signals on to other processes; a second SIGINT is for this one."""

    def __init__(self) -> None:
        self.number = 0                  # the last signal
        self._pids: list[int] | None = None

    def handled(self) -> contextlib.AbstractContextManager:
        return signals.handled(dict.fromkeys((*signals.REQUESTS, signal.SIGINT), self._hand_on))

    def connect(self, pids: list[int]) -> None:
        self._pids = pids
        if self.number:
            self._hand_on(self.number, None)

    def _hand_on(self, number: int, frame: Any) -> None:
        self.number = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        for pid in self._pids or ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _run(rank: int, function: Callable[..., Any], num_processes: int, device: str, args: tuple,
         address: str | None = None, answers: Any = None, asked: int = 0) -> Any:
    """What each process does. asked: a request for StopRequest.ask, or 0."""
    memory.keep_freed()
    if asked:
        signals.StopRequest.ask(asked)
    if num_processes > 1:
        signals.end_with_parent()        # torch sends a signal then, but only once a process has started
        sys.stdout, sys.stderr = Screen(sys.stdout), Screen(sys.stderr)
    mine = torch.device("cuda", rank) if device == "cuda" else torch.device("cpu")
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    elif num_processes > 1:
        torch.set_num_threads(max(usable_cores() // num_processes, 1))
    try:
        init(rank, num_processes, mine, init_method=address)
        result = function(rank, mine, *args)
    except UserError as error:
        if answers is not None:
            answers.put(("mistake", error.message))
        raise
    shutdown()                           # not after an error: the others may wait in a collective
    if answers is not None and rank == 0:
        answers.put(("result", result))
    return result


def shutdown() -> None:
    if is_initialized():
        dist.destroy_process_group()


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    return dist.get_rank() if is_initialized() else 0


def get_world_size() -> int:
    return dist.get_world_size() if is_initialized() else 1


def print0(*args: object, **kwargs: object) -> None:
    """print, on rank 0 only."""
    if get_rank() == 0:
        print(*args, **kwargs)


def free_port() -> int:
    """A TCP port that is free on the loopback interface right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def barrier() -> None:
    """Waits until all processes are here."""
    if get_world_size() > 1:
        dist.barrier()


def max_over_ranks(value: int) -> int:
    """The largest of all ranks' numbers."""
    if get_world_size() == 1:
        return value
    largest = torch.tensor(value, dtype=torch.int64, device="cpu")    # on the CPU, so that no CUDA device has to wait
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def gather(value: Any) -> list[Any]:
    """Every rank's object, by rank. The objects are pickled."""
    if get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of each rank's tensor, the same on all; carries no gradient."""
    if get_world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / get_world_size()


def average_(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces each tensor by its mean over ranks, in place, with one message for all of them."""
    tensors = list(tensors)
    if get_world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= get_world_size()
    with torch.no_grad():
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(mean.view_as(tensor))


def broadcast_(tensors: Iterable[torch.Tensor], src: int = 0) -> None:
    """Makes every rank's tensors equal to those of rank `src`, in place."""
    if get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=src)
