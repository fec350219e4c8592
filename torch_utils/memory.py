"""This process's memory on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3       # of malloc.h


def keep_freed() -> None:
    """From now on this process keeps what it frees, for its next tensors. For programs, at their start.

    glibc returns large blocks to the system at once and gets zeroed ones for the next tensor; for feature maps that
    takes longer than computing them (docs/experiments.md). Does nothing with other libraries, or where
    MALLOC_MMAP_THRESHOLD_ is set.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 ** 31 - 1)


@contextlib.contextmanager
def settled_objects() -> Iterator[None]:
    """Inside, Python's garbage collector looks at new objects only.

    For loops that make many short-lived objects: looking through the old ones took 5 per cent of a small
    network's training step. The imported modules alone hold many thousands of them.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
