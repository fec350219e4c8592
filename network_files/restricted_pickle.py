"""An unpickler that calls only what a table allows, and whose memory and time stay in proportion to the file.

Who attacks: people who publish network files for others to try. A pickle is a program, so plain `pickle.load` would run
theirs. The table of names stops that, but not a file that only wants to take the machine down. Measured with the same
table and Python 3.11's own unpickler, limited to 8 GB and 20 s (tests/hostile_files.py has such files):

    memo numbers up to 2 ** 30 (116 bytes)                              4 GB, then the limit
    one string of 1 MB, converted 100,000 times (1.5 MB)                7.6 GB, then the limit
    a key, or an init argument, that holds its parts
        several times on each of many levels (434 bytes)                does not end
    200,000 whole numbers of one hash as keys (2.6 MB)                  does not end; grows with the square of the file
    a key nested three million levels deep (3 MB)                       the process crashes

So this unpickler checks the values themselves before it uses them: only text and whole numbers are keys; each container
and result knows how much it would be if written out, how deep it nests and whether it already lies in another one.
`torch.load(weights_only=True)` has the same gaps: keys of 60 levels hang it too. What passes is bounded:

    it calls and imports only the names in the table, and changes attributes only of results that the table lists;
    it allocates a small multiple of the file; it builds no cycles.

Opcodes that no pickler of protocol 2 to 5 writes for a network are refused by name.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from dnnlib.util import UserError

MAX_OPCODES = 1_000_000                 # small StyleGANs have 20,000, and the number grows with the layers only
MAX_DEPTH = 100                         # containers within containers; network files reach 33
MAX_LINE = 216                          # bytes of a line, such as a module's name
UNIT_BYTES = 1024                       # a value weighs 1, and 1 more for each such piece of text or bytes
BASE_WEIGHT = 500_000                   # that calls may be given in files of any size; small StyleGANs need 60,000
WEIGHT_PER_UNIT = 16                    # and for each piece of the file: a tensor passes through some five nested calls


_BODIES = (str, bytes, memoryview)
_ATOMS = (*_BODIES, int, float, type(None))


class Refused(UserError):
    """The file asks for something that no network needs."""


@dataclass(frozen=True)
class Allowed:
    """What a name in a file stands for. Files cannot change it."""

    name: str
    function: Callable | None = None    # None: files mention it and do not call it
    takes_items: bool = False           # the result is a dict that the file fills
    takes_state: bool = False           # the result has a __setstate__ that checks what it gets


@dataclass(slots=True)
class _Known:
    """A container, or the result of a call."""

    value: Any                          # kept alive, so that no other value gets its id
    weight: int = 1
    depth: int = 1
    inside: bool = False                # of another one, so that it may not change any more
    made_by: Allowed | None = None


class RestrictedUnpickler:
    """Reads one pickle from a seekable stream, beginning at its position."""

    def __init__(self, stream: BinaryIO, allowed: Mapping[str, Allowed], max_opcodes: int = MAX_OPCODES):
        self.stream, self.allowed, self.max_opcodes = stream, allowed, max_opcodes
        start = stream.tell()
        self.left = stream.seek(0, os.SEEK_END) - start                 # bytes
        stream.seek(start)
        self.budget = BASE_WEIGHT + WEIGHT_PER_UNIT * (self.left // UNIT_BYTES)     # of calls and of each value
        self.spent = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []                               # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.known: dict[int, _Known] = {}                              # by id

    def load(self) -> Any:
        """The object in the pickle. Raises Refused for what is not allowed, and pickle.UnpicklingError or any other
        exception if the pickle is damaged.
        """
        for count in range(self.max_opcodes):
            opcode = self.read(1)
            if count == 0 and opcode != pickle.PROTO:
                raise pickle.UnpicklingError("it does not begin as a pickle of protocol 2 or above")
            if opcode == pickle.STOP:
                return self.stack.pop()
            if opcode not in _STEPS:
                raise _unexpected(opcode)
            _STEPS[opcode](self)
        raise Refused(f"it has more than {self.max_opcodes:,} opcodes; it was not loaded")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to storages outside of the pickle, as torch.save does; "
                      "expected a network-snapshot-*.pkl")

    # -----------------------------------------------------------------------------------------------------------------
    # Bytes of the file.

    def check(self, size: int) -> int:
        """The size. Raises UnpicklingError where the file has fewer bytes left."""
        if size > self.left:
            raise pickle.UnpicklingError(f"it ends {size - self.left:,} bytes too early")
        return size

    def read(self, size: int) -> bytes:
        self.left -= self.check(size)
        return self.stream.read(size)

    def number(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def body(self, size: int) -> bytes:
        """Bytes behind their length, which takes `size` bytes."""
        return self.read(self.number(size))

    def text(self, size: int) -> str:
        return str(self.body(size), "utf-8", "surrogatepass")

    def line(self) -> str:
        line = self.stream.readline(min(MAX_LINE, self.left))
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise pickle.UnpicklingError("it has a line that does not end")
        return line[:-1].decode()

    def buffer(self) -> memoryview:
        """Memory that a tensor can keep. A bytearray, which the file means, would first be filled with zeros."""
        data = np.empty(self.check(self.number(8)), dtype=np.uint8).data
        self.left -= len(data)
        if self.stream.readinto(data) != len(data):
            raise pickle.UnpicklingError("it ends too early")
        return data

    # -----------------------------------------------------------------------------------------------------------------
    # Stack and memo.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marked.pop()
        return values

    def pop_last(self, count: int) -> list[Any]:
        """The last values on the stack. Raises IndexError if it has fewer."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def drop(self) -> None:
        """A value, or a mark."""
        self.stack.pop() if self.stack else self.pop_to_mark()

    def memorise(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise pickle.UnpicklingError(f"nothing has the memo number {index:,}")
        self.push(self.memo[index])

    # -----------------------------------------------------------------------------------------------------------------
    # Containers.

    def new(self, value: Any, parts: Sequence[Any] = (), made_by: Allowed | None = None) -> None:
        """Pushes a container of these parts, or the result of a call with them."""
        if not isinstance(value, _ATOMS):
            known = self.known[id(value)] = _Known(value, made_by=made_by)
            if parts:
                self.fill(known, parts)
        self.stack.append(value)

    def fill(self, target: _Known, parts: Sequence[Any]) -> None:
        """Counts these parts as the target's."""
        for part in parts:
            known = self.known.get(id(part))
            if known is not None:
                known.inside = True
                target.depth = max(target.depth, known.depth + 1)
            target.weight += self.weight(part)
        if target.inside:
            raise Refused("it contains itself, or changes a value that is in use; it was not loaded")
        if target.depth > MAX_DEPTH:
            raise Refused(f"it nests more than {MAX_DEPTH} levels deep; it was not loaded")
        if target.weight > self.budget:
            raise Refused("it repeats its own parts without end; it was not loaded")

    def weight(self, value: Any) -> int:
        if isinstance(value, _BODIES):
            return 1 + len(value) // UNIT_BYTES
        return self.known[id(value)].weight if id(value) in self.known else 1

    def add_items(self, kind: type, values: list[Any]) -> None:
        target = self.stack[-1]
        known = self.known.get(id(target))
        filled_dict = kind is dict and known is not None and known.made_by is not None and known.made_by.takes_items
        if type(target) is not kind and not filled_dict:
            raise Refused(f"it adds items to {_kind(target)}, expected a {kind.__name__}; it was not loaded")
        if kind is not list:
            for key in values if kind is set else values[::2]:
                if not is_key(key):
                    raise Refused(f"it has a key that is neither text nor a whole number but {_kind(key)}; "
                                  "it was not loaded")
        self.fill(known, values)
        if kind is list:
            target.extend(values)
        elif kind is set:
            target.update(values)
        else:
            target.update(zip(values[::2], values[1::2], strict=True))

    # -----------------------------------------------------------------------------------------------------------------
    # Names and calls.

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused(f"it names something by {_kind(module)} and {_kind(name)}, expected text; it was not loaded")
        full_name = f"{module}.{name}"
        if full_name not in self.allowed:
            raise Refused(f"it names {full_name[:MAX_LINE]!r}, which no network needs; it was not run")
        self.push(self.allowed[full_name])

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Allowed):
            raise Refused(f"it calls what it has built ({_kind(function)}); it was not loaded")
        if function.function is None:
            raise Refused(f"it calls {function.name!r}, which no network does; it was not loaded")
        if type(args) is not tuple:
            raise pickle.UnpicklingError(f"it calls {function.name} with {_kind(args)}, expected a tuple")
        self.spend(args)
        self.new(function.function(*args), [args], made_by=function)

    def set_state(self, target: Any, state: Any) -> None:
        """An empty state changes nothing; older Pythons write one for every object."""
        known = self.known.get(id(target))
        if state is not None and not (type(state) is dict and not state):
            if known is None or known.made_by is None or not known.made_by.takes_state:
                raise Refused(f"it tries to change attributes of {_kind(target)}; it was not loaded")
            self.spend(state)
            self.fill(known, [state])
            target.__setstate__(state)
        self.push(target)

    def spend(self, value: Any) -> None:
        """Counts what a call gets."""
        self.spent += self.weight(value)
        if self.spent > self.budget:
            raise Refused("it repeats its own parts without end; it was not loaded")


def is_key(value: Any) -> bool:
    """Whether it can be a key: hashing and comparing it takes no time, and few others have its hash."""
    return value is None or isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 32)


def _kind(value: Any) -> str:
    return repr(value.name) if isinstance(value, Allowed) else type(value).__name__


def _unexpected(opcode: bytes) -> Exception:
    names = {code.code.encode("latin1"): code.name for code in pickletools.opcodes}
    if opcode in names:
        return Refused(f"it uses the pickle opcode {names[opcode]}, which no network file needs; it was not loaded")
    return pickle.UnpicklingError(f"there is no opcode {opcode!r}")


_STEPS: dict[bytes, Callable[[RestrictedUnpickler], Any]] = {
    pickle.PROTO:               lambda u: u.number(1),
    pickle.FRAME:               lambda u: u.check(u.number(8)),                     # how much could be fetched at once
    pickle.NONE:                lambda u: u.push(None),
    pickle.NEWTRUE:             lambda u: u.push(True),
    pickle.NEWFALSE:            lambda u: u.push(False),
    pickle.BININT:              lambda u: u.push(int.from_bytes(u.read(4), "little", signed=True)),
    pickle.BININT1:             lambda u: u.push(u.number(1)),
    pickle.BININT2:             lambda u: u.push(u.number(2)),
    pickle.LONG1:               lambda u: u.push(int.from_bytes(u.body(1), "little", signed=True)),
    pickle.INT:                 lambda u: u.push(int(u.line())),                    # Python 2's, beyond 32 bits
    pickle.BINFLOAT:            lambda u: u.push(struct.unpack(">d", u.read(8))[0]),
    pickle.SHORT_BINUNICODE:    lambda u: u.push(u.text(1)),
    pickle.BINUNICODE:          lambda u: u.push(u.text(4)),
    pickle.BINUNICODE8:         lambda u: u.push(u.text(8)),
    pickle.SHORT_BINSTRING:     lambda u: u.push(u.body(1).decode("ascii")),        # Python 2's
    pickle.BINSTRING:           lambda u: u.push(u.body(4).decode("ascii")),
    pickle.SHORT_BINBYTES:      lambda u: u.push(u.body(1)),
    pickle.BINBYTES:            lambda u: u.push(u.body(4)),
    pickle.BINBYTES8:           lambda u: u.push(u.body(8)),
    pickle.BYTEARRAY8:          lambda u: u.push(u.buffer()),
    pickle.EMPTY_LIST:          lambda u: u.new([]),
    pickle.EMPTY_DICT:          lambda u: u.new({}),
    pickle.EMPTY_SET:           lambda u: u.new(set()),
    pickle.EMPTY_TUPLE:         lambda u: u.push(()),
    pickle.TUPLE1:              lambda u: u.new(tuple(parts := u.pop_last(1)), parts),
    pickle.TUPLE2:              lambda u: u.new(tuple(parts := u.pop_last(2)), parts),
    pickle.TUPLE3:              lambda u: u.new(tuple(parts := u.pop_last(3)), parts),
    pickle.TUPLE:               lambda u: u.new(tuple(parts := u.pop_to_mark()), parts),
    pickle.APPEND:              lambda u: u.add_items(list, u.pop_last(1)),
    pickle.APPENDS:             lambda u: u.add_items(list, u.pop_to_mark()),
    pickle.SETITEM:             lambda u: u.add_items(dict, u.pop_last(2)),
    pickle.SETITEMS:            lambda u: u.add_items(dict, u.pop_to_mark()),
    pickle.ADDITEMS:            lambda u: u.add_items(set, u.pop_to_mark()),
    pickle.MARK:                lambda u: u.mark(),
    pickle.POP:                 lambda u: u.drop(),
    pickle.POP_MARK:            lambda u: u.pop_to_mark(),
    pickle.MEMOIZE:             lambda u: u.memorise(len(u.memo)),
    pickle.BINPUT:              lambda u: u.memorise(u.number(1)),
    pickle.LONG_BINPUT:         lambda u: u.memorise(u.number(4)),
    pickle.BINGET:              lambda u: u.recall(u.number(1)),
    pickle.LONG_BINGET:         lambda u: u.recall(u.number(4)),
    pickle.GLOBAL:              lambda u: u.name(u.line(), u.line()),
    pickle.STACK_GLOBAL:        lambda u: u.name(*u.pop_last(2)),
    pickle.REDUCE:              lambda u: u.call(*u.pop_last(2)),
    pickle.NEWOBJ:              lambda u: u.call(*u.pop_last(2)),
    pickle.BUILD:               lambda u: u.set_state(*u.pop_last(2)),
    pickle.BINPERSID:           lambda u: u.push(u.persistent_load(u.stack.pop())),
}
