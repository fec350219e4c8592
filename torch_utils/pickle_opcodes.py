"""The opcodes of a pickle one after the other, without the bodies of long strings and tensors."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator
from typing import BinaryIO

MAX_TEXT = 200                          # letters of a text, or of a line, that are handed out
PIECE = 4096                            # bytes read at once; between two tensors there is less
LONGEST = 2 * MAX_TEXT + 16             # an opcode with its argument, bodies that are skipped aside

# How many bytes hold the length of the body that follows.
_LENGTH_BYTES = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4,
                 pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_TABLE = {ord(opcode.code): (opcode.name, opcode.arg.n if opcode.arg else 0) for opcode in pickletools.opcodes}
_LINES = {"GLOBAL": 2, "INST": 2}       # other opcodes with lines have one


def damaged(at: int, what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"byte {at}: {what}")


def read_opcodes(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[int, str, int, bytes]]:
    """(position, name, number, data) of each opcode up to STOP, from a seekable stream of which [start, end) may be looked at.

    The number is the argument, or the length of a body; the data are the body up to MAX_TEXT bytes, else b"", or the argument's
    lines with a space between. Raises pickle.UnpicklingError where an opcode is unknown or reaches beyond the end.
    """
    piece, base, at = b"", start, 0                         # `piece` lies at `base`; the opcode at piece[at]
    name = ""
    while name != "STOP":
        if at + LONGEST > len(piece) and (base + len(piece) < end or at >= len(piece)):
            base += at
            stream.seek(base)
            piece, at = stream.read(min(PIECE, max(end - base, 0))), 0
            if not piece:
                raise damaged(base, "it ends before its time")
        name, size = _TABLE.get(piece[at], ("", 0))
        begin, number, data = at + 1, 0, b""
        if size > 0:
            data = piece[begin : begin + size]
            number, after = int.from_bytes(data, "little"), begin + size
        elif size == 0:
            if not name:
                raise damaged(base + at, f"there is no opcode {piece[at : at + 1]!r}")
            after = begin
        elif size == pickletools.UP_TO_NEWLINE:
            lines = piece[begin : begin + LONGEST].split(b"\n", _LINES.get(name, 1))
            if len(lines) <= _LINES.get(name, 1) or any(len(line) > MAX_TEXT for line in lines[:-1]):
                raise damaged(base + at, f"{name} with a line that does not end")
            data = b" ".join(lines[:-1])
            after = begin + len(data) + 1
        else:
            body = begin + _LENGTH_BYTES[size]
            number = int.from_bytes(piece[begin:body], "little")
            after = body + number
            data = piece[body:after] if number <= MAX_TEXT else b""
        if base + after > end:
            raise damaged(base + at, f"{name} of {after - at:,} bytes, more than the file has")
        yield base + at, name, number, data
        at = after
