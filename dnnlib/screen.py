"""Output that does not end a run, and log files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import click


class Screen:
    """stdout or stderr on which printing does not end a run.

    Characters that the encoding lacks become escapes. If the stream is None, closed or gone, text is dropped. A reader
    that leaves (`| head`) still raises BrokenPipeError, which ends a command.
    """

    def __init__(self, stream: Any):
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream

    def write(self, text: str) -> int:
        with _dropping_text():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with _dropping_text():
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:               # it is closed
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _dropping_text() -> Iterator[None]:
    """Inside, writing to a closed stream (ValueError), to a terminal that is gone or to a full disk raises nothing."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError):
        pass


EXIT_BROKEN_PIPE = 141                   # what shells report for programs that SIGPIPE ends


def run_program(command: click.Command) -> NoReturn:
    """Runs the command and ends this program. Ends quietly, with EXIT_BROKEN_PIPE, if the reader of its output leaves
    (`| head`).
    """
    code, stdout = 0, sys.stdout
    try:
        command.main()
    except SystemExit as end:
        code = end.code or 0
        if sys.stdout is not stdout:                    # click replaces it, and ends with code 1, at a broken pipe
            code = EXIT_BROKEN_PIPE
    except BrokenPipeError:              # while it printed an error
        code = EXIT_BROKEN_PIPE
    for stream in (sys.__stdout__, sys.__stderr__):     # Python would complain at exit about text left in them
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            code = code or EXIT_BROKEN_PIPE
        except (OSError, ValueError):
            code = code or 1
        else:
            continue
        silence(stream)
    sys.exit(code)


def silence(stream: Any) -> None:
    """Drops what is written to this stream from now on, and what is left in it, since its reader has left."""
    with contextlib.suppress(OSError, ValueError, AttributeError):      # a stream without a file behind it
        target = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, target)
        os.close(nowhere)


class Logger:
    """While open, also writes all that goes to stdout and stderr into a file; with `should_flush` at once.

    `reader_gone` is called if the reader of stdout or stderr leaves (`| head`), and the file goes on. None: a
    BrokenPipeError is raised. A terminal that has gone raises nothing, as SIGHUP tells programs of it.
    """

    def __init__(self, file_name: str | None = None, file_mode: str = "w", should_flush: bool = True,
                 reader_gone: Callable[[], None] | None = None):
        self.file = open(file_name, file_mode, encoding="utf-8", errors="backslashreplace") if file_name else None
        self.should_flush = should_flush
        self.reader_gone = reader_gone
        self._saved = (sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = (_Tee(self, stream) for stream in self._saved)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def write(self, text: str | bytes) -> None:
        """Writes into the log file only."""
        text = text.decode() if isinstance(text, bytes) else text
        if self.file is None or not text or text.startswith("\r"):     # redrawn progress bars are for the screen
            return
        self.file.write(text)
        if self.should_flush:
            self.file.flush()

    def flush(self) -> None:
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Gives the streams back and closes the file. May be called twice."""
        for stream, saved in zip(("stdout", "stderr"), self._saved):
            tee = getattr(sys, stream)
            if isinstance(tee, _Tee) and tee.logger is self:
                setattr(sys, stream, saved)
        if self.file is not None:
            self.file.close()
            self.file = None


class _Tee:
    """A text stream that writes to the screen and to a Logger's file."""

    def __init__(self, logger: Logger, stream: Any):
        self.logger, self.stream = logger, Screen(stream)

    def write(self, text: str) -> int:
        self.logger.write(text)
        self._on_screen(lambda: self.stream.write(text))
        if self.logger.should_flush:
            self._on_screen(self.stream.flush)
        return len(text)

    def flush(self) -> None:
        self.logger.flush()
        self._on_screen(self.stream.flush)

    def _on_screen(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BrokenPipeError:
            if self.logger.reader_gone is None:
                raise
            silence(self.stream)
            self.logger.reader_gone()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
