"""Requests to stop, which a cluster, a terminal or `kill` sends as signals."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

REQUESTS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))     # to save and leave


SAME_PRESS_S = 0.5                       # a terminal and a parent process may both deliver one Ctrl-C


class Interrupted(BaseException):
    """A request came while nothing was left to be saved. The argument is the signal's number."""


@contextlib.contextmanager
def handled(handlers: Mapping[int, Callable[[int, Any], None]]) -> Iterator[None]:
    """Within, signals go to these handlers. Does nothing outside of the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Remembers that this process was asked to stop, so that a loop can end where it is whole.

        with StopRequest() as stop:
            while not stop.number:
                step()

    `number` is the signal's, 0 before there is one. A second Ctrl-C is a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.number = 0
        self._last = -math.inf           # when SIGINT came, on the monotonic clock
        self._may_leave = False
        self._handled = handled({number: self._remember for number in (*REQUESTS, signal.SIGINT)})

    def __enter__(self) -> StopRequest:
        self._handled.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._handled.__exit__(*error)

    @contextlib.contextmanager
    def may_leave(self) -> Iterator[None]:
        """Within, a request raises Interrupted at once; so does what other processes, which have left, make fail."""
        self._may_leave = True
        try:
            if self.number:
                raise Interrupted(self.number)
            yield
        except RuntimeError as error:
            if self.number:
                raise Interrupted(self.number) from error
            raise
        finally:
            self._may_leave = False

    def _remember(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if now - self._last < SAME_PRESS_S:
                return
            self._last = now
            if self.number:
                raise KeyboardInterrupt
        self.number = number
        if self._may_leave:
            raise Interrupted(number)


def end_with_parent() -> None:
    """From now on this process ends at once when the process that spawned it has ended, in whatever way."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, name="end_with_parent", daemon=True).start()


def leave_to_parent(worker: int = 0) -> None:
    """For processes that read data (a DataLoader's `worker_init_fn`): they end when their parent does, and not before."""
    for number in (*REQUESTS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
