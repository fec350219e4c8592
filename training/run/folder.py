"""The folder of a run: where it is made, what is written first, and its lock."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from dnnlib import UserError
from dnnlib.util import open_whole

try:
    import fcntl
except ImportError:                      # Windows: runs are not locked there
    fcntl = None

LOCK_PATIENCE_S = 5.0                    # for a process that is just being killed
MAX_NAME = 255                           # bytes in a file name


def check_outdir(outdir: str) -> None:
    """Raises UserError if no run folder could be made there. Makes nothing."""
    place = os.path.abspath(outdir)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"--outdir={outdir}: {place} is not a folder; choose another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--outdir={outdir}: you may not write into {place}; choose another folder")


def next_run_dir(outdir: str, desc: str) -> str:
    """OUTDIR/NNNNN-DESC with the number after the highest one there. Raises UserError if the name is too long."""
    names = os.listdir(outdir) if os.path.isdir(outdir) else []
    taken = [int(match.group()) for name in names if (match := re.match(r"\d+", name))]
    name = f"{max(taken, default=-1) + 1:05d}-{desc}"
    if len(os.fsencode(name)) > MAX_NAME:
        raise UserError(f"--desc, --data: the run folder would be called {name}, {len(os.fsencode(name))} bytes, "
                        f"expected {MAX_NAME} at most; give a shorter description, or a data set with a shorter name")
    return os.path.join(outdir, name)


def make_run_dir(outdir: str, desc: str) -> str:
    """Makes a new run folder, also when several commands do so at the same moment."""
    while True:
        run_dir = next_run_dir(outdir, desc)
        try:
            os.makedirs(run_dir)
            return run_dir
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"--outdir={outdir}: cannot make {run_dir}: {error.strerror or error}; "
                            "choose a folder that you may write to") from error


def save_options(config: dict) -> None:
    """Writes training_options.json into the run folder."""
    with open_whole(os.path.join(config["run_dir"], "training_options.json"), text=True) as stream:
        json.dump(config, stream, indent=2)


@contextlib.contextmanager
def locked(run_dir: str) -> Iterator[None]:
    """Inside, no other process trains in this folder. Raises UserError if one does. A lock ends with its process."""
    path = os.path.join(run_dir, ".lock")
    with open(path, "a+", encoding="utf-8") as stream:
        if fcntl is not None:
            _wait_for_lock(stream, run_dir)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}" if hasattr(os, "uname") else str(os.getpid()))
        stream.flush()
        yield


def remove_parts(run_dir: str) -> None:
    """Removes files that a killed process left half-written. The caller holds the lock."""
    for path in glob.glob(os.path.join(glob.escape(run_dir), "*.part")):
        os.remove(path)


def _wait_for_lock(stream: Any, run_dir: str) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                stream.seek(0)
                raise UserError(f"{run_dir} is being trained by {stream.read() or 'another process'}; wait for it, "
                                "or start another run with --new") from None
            time.sleep(0.1)
        except OSError as error:         # a file system without locks
            print(f"Warning: {run_dir} cannot be locked ({error.strerror}): "
                  "do not start the same command twice at a time.")
            return
