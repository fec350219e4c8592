"""What the commands share: types of values, options that several of them have, progress, and a safe screen.

    @click.command(cls=cli.Command)
    @click.option("--data", type=cli.PATH, ...)
    @cli.device_option
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from dnnlib.util import CONTROL, Screen, UserError, format_time_brief

PROGRESS_INTERVAL_S = 60                 # between two lines of progress, if the screen is not a terminal


# ---------------------------------------------------------------------------------------------------------------------
# Types of values.

class PathType(click.ParamType):
    """A file, a folder or an address. Expands a leading ~, which shells do not expand in --option=~/x."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return os.path.expanduser(value)


class KindPathType(PathType):
    """FILE or KIND=FILE. Expands a leading ~ of FILE."""

    name = "[KIND=]FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, equals, path = value.partition("=")
        return os.path.expanduser(value) if value.startswith("~") else kind + equals + os.path.expanduser(path)


class NameType(click.ParamType):
    """A part of a file name, so without slashes."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        separator = re.search(r"[/\\]", value)
        if separator:
            raise UserError(f"{_flag(param)}={value}: becomes part of a folder's name, which cannot hold "
                            f"{separator[0]!r}; leave that out")
        return value


class TextType(click.ParamType):
    """Any text. It may have several lines."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value


PATH, KIND_PATH, NAME, TEXT = PathType(), KindPathType(), NameType(), TextType()


def comma_list(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Callback of options such as --metrics: 'a, b' -> ('a', 'b'); 'none' or '' -> (); None (not given) -> None."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    return () if [name.lower() for name in names] == ["none"] else names


# ---------------------------------------------------------------------------------------------------------------------
# Options that several commands have.

device_option = click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto",
                             help="auto: CUDA if the machine has a GPU, else the CPU")
samples_option = click.option("--samples", type=click.IntRange(min=1),
                              help="Number of images for all metrics; becomes part of their names")
detector_option = click.option("--detector", metavar="[KIND=]FILE", multiple=True, type=KIND_PATH,
                               help="TorchScript detector of metrics from a file; can be given again")
pose_regressor_option = click.option("--pose-regressor", metavar="FILE", type=PATH,
                                     help="For the metric pose_error, from `python -m metrics.pose_regressor`")
embedding_option = click.option("--embedding", metavar="FILE", type=PATH,
                                help="For the metric view_consistency: TorchScript, images -> features")


# ---------------------------------------------------------------------------------------------------------------------
# Commands.

class _Shared:
    """What Command and Group have in common."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with safe_screen():
            return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Drops carriage returns at the end of words, which scripts with Windows line ends leave there."""
        args = [arg.rstrip("\r") for arg in args if not arg or arg.rstrip("\r")]
        if not ctx.resilient_parsing:
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            for param in self.params:
                values = given.get(param.name)
                for value in values if isinstance(values, list) else [values]:
                    _refuse_control(param, value)
        return super().parse_args(ctx, args)


class Command(_Shared, click.Command):
    """A click.Command of this project. It refuses control characters in values, except lines and tabs in TEXT."""


class Group(_Shared, click.Group):
    """A click.Group of this project."""

    command_class = Command


@contextlib.contextmanager
def safe_screen() -> Iterator[None]:
    """While it is open, printing to stdout and stderr raises only BrokenPipeError; see `Screen`."""
    before = sys.stdout, sys.stderr
    _fill_standard_files()
    ours = sys.stdout, sys.stderr = Screen(sys.stdout), Screen(sys.stderr)
    try:
        yield
    finally:
        for name, screen, stream in zip(("stdout", "stderr"), ours, before):
            if getattr(sys, name) is screen:
                setattr(sys, name, stream)


def _fill_standard_files() -> None:
    """Opens those of stdin, stdout and stderr that are closed.

    Otherwise the next file to be opened would get their number, and what libraries print would go into it.
    """
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:
        os.set_inheritable(number, True)
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)


def _refuse_control(param: click.Parameter, value: Any) -> None:
    if not isinstance(value, str):
        return
    found = CONTROL.search(re.sub("[\t\r\n]", "", value) if isinstance(param.type, TextType) else value)
    if found:
        raise UserError(f"{_flag(param)}={value!r}: holds the control character {found[0]!r}; leave that out")


def _flag(param: click.Parameter | None) -> str:
    return max(param.opts, key=len) if param is not None else "the value"


# ---------------------------------------------------------------------------------------------------------------------
# Progress.

class _LineProgress:
    """Prints a line to stderr once a minute, so nothing about shorter work."""

    def __init__(self, total: int, what: str, unit: str):
        self.total, self.what, self.unit = total, what, unit
        self.done = 0
        self.start = self.last = time.monotonic()

    def __enter__(self) -> _LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        self.done = min(self.done + count, self.total)
        now = time.monotonic()
        if now - self.last >= PROGRESS_INTERVAL_S:
            self.last = now
            share = 100 * self.done / max(self.total, 1)
            print(f"{self.what}: {self.done} of {self.total} {self.unit} ({share:.0f} %) after "
                  f"{format_time_brief(now - self.start)}", file=sys.stderr, flush=True)


def progress(total: int, what: str, unit: str = "img", shown: bool = True) -> Any:
    """A context manager with `update(count)`: a bar on a terminal, a line a minute elsewhere (log files, pipes).

    total: number of items; what: caption; shown: False prints nothing.
    """
    if shown and not sys.stderr.isatty():
        return _LineProgress(total, what, unit)
    from tqdm import tqdm  # not needed for --help
    return tqdm(total=total, desc=what, unit=unit, leave=False, smoothing=0.05, disable=not shown)
