"""What all commands share: paths with ~, values without carriage returns, output that does not end a run.

    @click.command(cls=cli.Command)
    @click.option("--data", type=cli.PATH, ...)
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import click

from dnnlib.util import CONTROL, Screen, UserError


class PathType(click.ParamType):
    """A file, a folder or an address; a leading ~ is the home folder, which shells leave alone in --option=~/x."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return os.path.expanduser(value)


class KindPathType(PathType):
    """A file, perhaps behind a word: KIND=FILE."""

    name = "[KIND=]FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, equals, path = value.partition("=")
        return os.path.expanduser(value) if value.startswith("~") else kind + equals + os.path.expanduser(path)


class NameType(click.ParamType):
    """A part of a file's name."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        separator = re.search(r"[/\\]", value)
        if separator:
            raise UserError(f"{_flag(param)}={value}: becomes part of a folder's name, "
                            f"which cannot hold {separator[0]!r}; leave that out")
        return value


class TextType(click.ParamType):
    """Any text, also of several lines."""

    name = "TEXT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value


PATH, KIND_PATH, NAME, TEXT = PathType(), KindPathType(), NameType(), TextType()


class _Shared:
    """The methods that Command and Group share."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with safe_screen():
            return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Removes the carriage returns that scripts with Windows' line ends leave behind a word, or as a word."""
        args = [arg.rstrip("\r") for arg in args if not arg or arg.rstrip("\r")]
        if not ctx.resilient_parsing:
            given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            for param in self.params:
                values = given.get(param.name)
                for value in values if isinstance(values, list) else [values]:
                    _refuse_control(param, value)
        return super().parse_args(ctx, args)


class Command(_Shared, click.Command):
    """A click.Command of this project. Values hold no control characters; those of type TEXT may hold lines and tabs.
    """


class Group(_Shared, click.Group):
    """A click.Group of this project."""

    command_class = Command


@contextlib.contextmanager
def safe_screen() -> Iterator[None]:
    """Inside, printing to stdout and stderr raises only BrokenPipeError, whatever they are; see `Screen`."""
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
    """Opens those of stdin, stdout and stderr that are missing. Otherwise the next file that is opened would get that
    number, and what libraries print.
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
