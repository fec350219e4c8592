"""Files whose sha256 is kept beside them, in FILE.sha256, so that a change shows."""

from __future__ import annotations

import functools
import hashlib
import os

from dnnlib.util import UserError, open_whole


def sha256_of(path: str) -> str:
    """Of the file's content, 64 hexadecimal digits. Raises UserError where it cannot be read."""
    try:
        state = os.stat(path)
        return _sha256(os.path.abspath(path), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


@functools.lru_cache(maxsize=64)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """`size` and `mtime_ns` only tell a file that has changed since from what it was."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def compare_hash(path: str) -> bool:
    """Is a hash recorded beside the file? Raises UserError where it is another one than the file's."""
    record, actual = path + ".sha256", sha256_of(path)
    try:
        with open(record, encoding="utf-8", errors="replace") as stream:
            expected = (stream.read().split() or [""])[0]
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{record}: cannot be read: {error.strerror or error}") from error
    if actual != expected:
        raise UserError(f"{path}: its sha256 is {actual[:12]}..., but {expected[:12]}... was recorded in {record} when it was first seen; "
                        "the file has changed: remove both to fetch it anew")
    return True


def record_hash(path: str) -> None:
    with open_whole(path + ".sha256", text=True) as stream:
        stream.write(f"{sha256_of(path)}  {os.path.basename(path)}\n")
