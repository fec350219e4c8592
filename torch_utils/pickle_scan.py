"""Looks through a pickle before anything of it is loaded: what it names, and whether loading stays within bounds.

A pickle is a program for a stack machine. `scan` runs it with stand-ins: of each value it knows only the kind, how deep it
nests and how much it would be if written out. Bodies of strings and tensors are skipped, so that memory and time depend on the
number of opcodes, which is limited. What passes cannot make the unpickler

    import or call anything but the names in `Rules`, or change attributes of anything but the results listed there,
    allocate more than a small multiple of the file, through lengths, memo numbers, frames or copies of copies,
    build a cycle, nest without end, or use keys whose hashes could be made to collide.

Opcodes that no pickler of protocol 2 to 5 writes for a network are refused by name.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from dnnlib.util import UserError
from torch_utils.pickle_opcodes import MAX_TEXT, damaged, read_opcodes

MAX_OPCODES = 1_000_000                 # small StyleGANs have 20,000, and the number grows with the layers only
MAX_DEPTH = 100                         # containers within containers; network files reach 33
MAX_INTEGER_BYTES = 32
UNIT_BYTES = 1024                       # a value weighs 1, and 1 more for each such piece of text or bytes
BASE_WEIGHT = 500_000                   # that calls may handle in files of any size; small StyleGANs need 60,000
WEIGHT_PER_UNIT = 16                    # and for each piece of the file: a tensor passes through some five nested calls


class Refused(UserError):
    """The file asks for something that no network needs."""


@dataclass(frozen=True)
class Rules:
    """What a pickle may ask for, all by full name."""

    names: Collection[str]                          # globals
    dicts: Collection[str] = ()                     # those whose results take items
    with_state: Collection[str] = ()                # those whose results take a state, which they check
    persistent_ids: bool = False                    # may it refer to objects outside?
    max_opcodes: int = MAX_OPCODES


def scan(stream: BinaryIO, rules: Rules) -> None:
    """Checks the pickle that begins at the position of the (seekable) stream, and leaves the stream there.

    Raises Refused where it breaks the rules, pickle.UnpicklingError where it is cut short or damaged.
    """
    start = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    _Scan(stream, start, end, rules).run()
    stream.seek(start)


class _Value:
    """What is known of a value on the stack."""

    __slots__ = ("kind", "depth", "weight", "name", "inside")

    def __init__(self, kind: str, depth: int = 1, weight: int = 1, name: str | None = None):
        self.kind = kind                            # a key of _PUSHED's values, "global" or "made" (by the function `name`)
        self.depth = depth
        self.weight = weight
        self.name = name                            # of a text: its letters, unless there are many
        self.inside = False                         # of something else already, so that it may not change any more


_MARK = _Value("mark")
_KEYS = ("text", "integer", "constant")
_PUSHED = {
    "constant": ("NONE", "NEWTRUE", "NEWFALSE"),
    "integer":  ("BININT", "BININT1", "BININT2"),
    "number":   ("BINFLOAT", "LONG1", "LONG4", "INT"),
    "text":     ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    "bytes":    ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    "list":     ("EMPTY_LIST",),
    "dict":     ("EMPTY_DICT",),
    "set":      ("EMPTY_SET",),
    "tuple":    ("EMPTY_TUPLE",),
}
_KIND_OF = {name: kind for kind, names in _PUSHED.items() for name in names}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INTEGERS = ("LONG1", "LONG4", "INT")              # Python 2 wrote those beyond 32 bits in digits
_GETS = ("BINGET", "LONG_BINGET")
_PUTS = ("BINPUT", "LONG_BINPUT")
_ADDS = {"APPEND": "list", "APPENDS": "list", "SETITEM": "dict", "SETITEMS": "dict", "ADDITEMS": "set"}
_CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "FROZENSET")
_OTHERS = ("PROTO", "FRAME", "MARK", "POP", "POP_MARK", "MEMOIZE", "TUPLE", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "STOP")
_EXPECTED = {*_KIND_OF, *_TUPLES, *_GETS, *_PUTS, *_ADDS, *_CALLS, *_OTHERS}


class _Scan:
    def __init__(self, stream: BinaryIO, start: int, end: int, rules: Rules):
        self.source, self.end, self.rules = read_opcodes(stream, start, end), end, rules
        self.limit = BASE_WEIGHT + WEIGHT_PER_UNIT * ((end - start) // UNIT_BYTES)
        self.stack: list[_Value] = []
        self.memo: dict[int, _Value] = {}
        self.opcodes = 0
        self.work = 0                               # weight of all that calls have been given so far
        self.frame_end = start
        self.at = start                             # where the present opcode lies
        self.opcode = ""

    def run(self) -> None:
        for at, opcode, number, data in self.source:
            self.at, self.opcode = at, opcode
            if self.opcodes == 0 and self.opcode != "PROTO":
                raise self.damaged("it does not begin as a pickle of protocol 2 or above")
            if self.opcode not in _EXPECTED:
                raise self.refused(f"it uses the pickle opcode {self.opcode}, which no network file needs")
            self.opcodes += 1
            if self.opcodes > self.rules.max_opcodes:
                raise self.refused(f"it has more than {self.rules.max_opcodes:,} opcodes")
            self.step(self.opcode, number, data)

    def damaged(self, what: str) -> Exception:
        return damaged(self.at, what)

    def refused(self, what: str) -> Exception:
        return Refused(f"{what} (byte {self.at}); it was not loaded")

    # -----------------------------------------------------------------------------------------------------------------
    # Stack and memo.

    def pop(self) -> _Value:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.damaged(f"{self.opcode} lacks a value")
        return self.stack.pop()

    def pop_to_mark(self) -> list[_Value]:
        values = []
        while self.stack and self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        if not self.stack:
            raise self.damaged(f"{self.opcode} lacks a mark")
        self.stack.pop()
        return values[::-1]

    def top(self) -> _Value:
        value = self.pop()
        self.stack.append(value)
        return value

    def put(self, index: int) -> None:
        """The unpickler keeps the memo as an array, so that a large number alone is an allocation."""
        if index > self.opcodes:
            raise self.refused(f"the memo number {index:,} after {self.opcodes:,} opcodes")
        self.memo[index] = self.top()

    def fill(self, target: _Value, values: Sequence[_Value]) -> _Value:
        """The target, with these values in it."""
        for value in values:
            value.inside = True
        if target.inside:
            raise self.refused("it contains itself, or changes a value that is in use")
        for value in values:
            target.depth = max(target.depth, value.depth + 1)
            target.weight += value.weight
        if target.depth > MAX_DEPTH:
            raise self.refused(f"it nests more than {MAX_DEPTH} levels deep")
        if target.weight > self.limit:
            raise self.refused("it repeats its own parts without end")
        return target

    def check_keys(self, keys: Sequence[_Value]) -> None:
        for key in keys:
            if key.kind not in _KEYS:
                raise self.refused(f"it has a key that is neither text nor a whole number but {key.name or key.kind}")

    def name_of(self, value: _Value) -> str:
        """Of a function or class that the file names."""
        if value.kind != "global":
            raise self.refused(f"it calls what it has built ({value.name or value.kind})")
        return value.name

    # -----------------------------------------------------------------------------------------------------------------
    # Opcodes, the most frequent ones first.

    def step(self, opcode: str, number: int, data: bytes) -> None:
        push = self.stack.append
        if opcode in _KIND_OF:
            kind = _KIND_OF[opcode]
            if kind == "text":
                push(_Value(kind, 1, 1 + number // UNIT_BYTES, data.decode("utf-8", "replace") if number <= MAX_TEXT else None))
            elif opcode in _INTEGERS and max(number, len(data)) > MAX_INTEGER_BYTES:
                raise self.refused("it has a whole number that is too long")
            else:
                push(_Value(kind, 1, 1 + number // UNIT_BYTES if kind == "bytes" else 1))
        elif opcode == "MEMOIZE":
            self.put(len(self.memo))
        elif opcode in _GETS:
            if number not in self.memo:
                raise self.damaged(f"nothing has the memo number {number:,}")
            push(self.memo[number])
        elif opcode in _TUPLES:
            push(self.fill(_Value("tuple"), [self.pop() for _ in range(_TUPLES[opcode])]))
        elif opcode in _CALLS:
            self.call(opcode)
        elif opcode in _ADDS:
            self.add_items(opcode)
        elif opcode in _PUTS:
            self.put(number)
        elif opcode == "MARK":
            push(_MARK)
        elif opcode == "TUPLE":
            push(self.fill(_Value("tuple"), self.pop_to_mark()))
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            push(_Value("global", name=self.checked_name(data.decode("utf-8", "replace").split(" ") if opcode == "GLOBAL" else None)))
        elif opcode == "POP_MARK":
            self.pop_to_mark()
        elif opcode == "POP" and self.stack and self.stack[-1] is _MARK:
            self.stack.pop()
        elif opcode in ("POP", "STOP"):
            self.pop()
        else:
            self.frame_or_id(opcode, number)

    def frame_or_id(self, opcode: str, number: int) -> None:
        """PROTO, FRAME, BINPERSID."""
        if opcode == "PROTO" and number > pickle.HIGHEST_PROTOCOL:
            raise self.damaged(f"protocol {number}")
        if opcode == "FRAME":
            begin = self.at + 9
            if begin < self.frame_end or begin + number > self.end:
                raise self.damaged(f"a frame of {number:,} bytes, more than the file or the frame around it has")
            self.frame_end = begin + number
        if opcode == "BINPERSID":
            if not self.rules.persistent_ids:
                raise self.refused("it refers to storages outside of the pickle, as torch.save does; expected a network-snapshot-*.pkl")
            self.stack.append(self.fill(_Value("made", name="a storage"), [self.pop()]))

    def checked_name(self, parts: list[str] | None) -> str:
        """Of a global, from GLOBAL's two lines or from the stack."""
        if parts is None:
            name, module = self.pop(), self.pop()
            if name.kind != "text" or module.kind != "text" or name.name is None or module.name is None:
                raise self.refused("it names something by what is no text, or very long")
            parts = [module.name, name.name]
        full_name = ".".join(parts)
        if full_name not in self.rules.names:
            raise Refused(f"it names {full_name!r}, which no network needs; it was not run")
        return full_name

    def add_items(self, opcode: str) -> None:
        if opcode in ("APPEND", "SETITEM"):
            values = [self.pop() for _ in range(1 if opcode == "APPEND" else 2)][::-1]
        else:
            values = self.pop_to_mark()
        target = self.top()
        kind = _ADDS[opcode]
        if target.kind != kind and not (kind == "dict" and target.kind == "made" and target.name in self.rules.dicts):
            raise self.refused(f"it adds items to what is no {kind} ({target.name or target.kind})")
        if kind == "dict":
            if len(values) % 2:
                raise self.damaged("a key lacks its value")
            self.check_keys(values[::2])
        elif kind == "set":
            self.check_keys(values)
        self.fill(target, values)

    def call(self, opcode: str) -> None:
        """REDUCE, NEWOBJ, NEWOBJ_EX: function and arguments. BUILD: object and state. FROZENSET: items."""
        if opcode == "FROZENSET":
            values = self.pop_to_mark()
            self.check_keys(values)
            self.stack.append(self.fill(_Value("tuple"), values))
        elif opcode == "BUILD":
            values = [self.pop()]
            self.set_state(self.top(), values[0])
        else:
            values = [self.pop() for _ in range(2 if opcode == "NEWOBJ_EX" else 1)]
            if values[-1].kind != "tuple":
                raise self.damaged(f"{opcode} with arguments that are no tuple")
            made = _Value("made", name=self.name_of(self.pop()))
            self.stack.append(self.fill(made, values))
        for value in values:
            self.work += value.weight
        if self.work > self.limit:
            raise self.refused("it repeats its own parts without end")

    def set_state(self, target: _Value, state: _Value) -> None:
        """An empty state changes nothing; older Pythons write it for every object."""
        empty = state.kind == "constant" or (state.kind == "dict" and state.weight == 1)
        if not empty and not (target.kind == "made" and target.name in self.rules.with_state):
            raise self.refused(f"it tries to change attributes of {target.name or target.kind}")
        self.fill(target, [state])
