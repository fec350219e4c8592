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

# Requests to save and leave.
REQUESTS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
HANG_UP = getattr(signal, "SIGHUP", None)               # the terminal has gone; `nohup` starts programs that ignore it
BROKEN_PIPE = getattr(signal, "SIGPIPE", 13)            # stands for it; Python raises an exception instead
SAME_PRESS_S = 0.5                       # a terminal and a parent process may both deliver one Ctrl-C


class Interrupted(BaseException):
    """A request came while nothing was left to be saved. The argument is the signal's number."""


@contextlib.contextmanager
def handled(handlers: Mapping[int, Callable[[int, Any], None]]) -> Iterator[None]:
    """Inside, signals go to these handlers, except SIGHUP if the program was told to ignore it. Does nothing outside of
    the main thread, since only that gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = [HANG_UP] if HANG_UP is not None and signal.getsignal(HANG_UP) is signal.SIG_IGN else []
    before = {number: signal.signal(number, handler) for number, handler in handlers.items() if number not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt(number: int, frame: Any = None) -> None:
    """A handler for times when nothing is left to be saved."""
    raise Interrupted(number)


class StopRequest:
    """Remembers that this process was asked to stop, so that a loop can end between two steps.

        with StopRequest() as stop:
            while not stop.number:
                step()

    `number` is the signal's, 0 before there is one. A second Ctrl-C raises KeyboardInterrupt. `asked` is a number from
    `ask`: such a request waits for the end of a step, since perhaps only one of several processes has it.
    """

    _current: StopRequest | None = None  # the innermost one of this process
    _early = 0                           # what `ask` got while there was none

    def __init__(self) -> None:
        self.number, self.asked = 0, StopRequest._early
        self._last = -math.inf           # when SIGINT came, on the monotonic clock
        self._may_leave = False
        self._handled = handled({number: self._remember for number in (*REQUESTS, signal.SIGINT)})

    def __enter__(self) -> StopRequest:
        self._handled.__enter__()
        self._outer, StopRequest._current, StopRequest._early = StopRequest._current, self, 0
        return self

    def __exit__(self, *error: object) -> None:
        StopRequest._current = self._outer
        self._handled.__exit__(*error)

    @staticmethod
    def ask(number: int) -> None:
        """Asks this process's loop to stop, or the next loop if there is none yet, as if this signal had come."""
        if StopRequest._current is None:
            StopRequest._early = number
        else:
            StopRequest._current.asked = number

    @staticmethod
    def take_early() -> int:
        """What `ask` got while there was no loop, or 0. The next loop will not get it."""
        number, StopRequest._early = StopRequest._early, 0
        return number

    @contextlib.contextmanager
    def may_leave(self) -> Iterator[None]:
        """Inside, a request raises Interrupted at once; so do errors that come from other processes having left."""
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


def start_resource_tracker() -> None:
    """Starts the process with which `multiprocessing` cleans up, and makes it ignore requests, which may go to all
    processes of the group: it must not end before the others.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    from multiprocessing import resource_tracker
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*REQUESTS, signal.SIGINT))           # it inherits this
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """From now on this process ends at once when the process that spawned it has ended, for whatever reason."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, name="end_with_parent", daemon=True).start()


def leave_to_parent(worker: int = 0) -> None:
    """For processes that read data (a DataLoader's `worker_init_fn`): requests do not end them, but their parent's end
    does.
    """
    for number in (*REQUESTS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
