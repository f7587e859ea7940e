"""How a command meets the outside: what it prints arrives or is missed, signals end it, errors are said once.

No traceback reaches who called the command, whatever becomes of its streams.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

import attrs

from pdcore.errors import ConfigError, IncompatiblePeerError, KVTransferError, PDCoreError, SelectionError

__all__ = ["Interrupted", "OutputError", "UsageError", "ended", "error_data", "explained", "say", "warn"]

FAILED, USAGE, SIGNALLED = 1, 2, 128
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TRACEBACK = "PDCORE_TRACEBACK"
"""Set to anything, it shows where an error came from that pdcore does not know."""


class UsageError(PDCoreError):
    """A command line of ``command`` that cannot be understood; ``usage`` says how one would look."""

    def __init__(self, command: str, happened: str, there_is: str, to_do: str, usage: str) -> None:
        super().__init__(happened, there_is, to_do)
        self.command = command
        self.usage = usage

    def __str__(self) -> str:
        facts = f"\n  there is: {self.there_is}" if self.there_is else ""
        return f"{self.usage}\n{self.command}: error: {self.happened}{facts}\n  to do: {self.to_do}"


class OutputError(PDCoreError):
    """What a command has to say could not be written."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end; like Ctrl-C, whatever signal it was."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.signum).name


class _ReaderGoneError(Exception):
    """Who read the output wants no more of it, as ``head`` does."""


@attrs.define
class _Signalled:
    """The signal that came first, or 0."""

    signum: int = 0


def say(text: str) -> None:
    """Print lines on standard output, at once.

    Raises:
        OutputError: they could not be written, as on a full disk or a closed stream.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        raise _lost(error) from error


def warn(text: str) -> None:
    """Print lines on standard error; where that is gone, nobody wants them."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        _mute(sys.stderr)


def ended(command: Callable[[], int], *, as_data: bool = False) -> int:
    """Run a command to its end and return its exit status.

    1 after a :class:`PDCoreError`, 2 after a :class:`UsageError`, 128 and the signal's number after a signal
    (130 for Ctrl-C, 143 for SIGTERM, 141 where the reader of the output is gone). With ``as_data`` an error
    is one JSON document on standard output, else text on standard error.
    """
    _fill_closed()
    with _heard() as signalled:
        try:
            status = _outcome(command, as_data)
        except _ReaderGoneError:
            status = SIGNALLED + signal.SIGPIPE
        except Exception as error:  # not even the error could be said on standard output
            status = FAILED
            warn(_text(error))
        if signalled.signum:
            status = SIGNALLED + signalled.signum
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            _mute(stream)
            if stream is sys.stdout and status == 0:
                status = _missed(error)
    return status


def error_data(error: BaseException) -> dict[str, object]:
    """Return an error as data: its type, the three parts of its text, and what else its type carries."""
    parts = explained(error)
    data: dict[str, object] = {
        "type": type(error).__name__,
        "happened": parts.happened,
        "there_is": parts.there_is.strip(),
        "to_do": parts.to_do,
    }
    if isinstance(error, UsageError):
        data["usage"] = error.usage
    elif isinstance(error, SelectionError):
        data |= {"candidates": [attrs.asdict(row) for row in error.rows], "more": error.more}
    elif isinstance(error, ConfigError):
        data["problems"] = [attrs.asdict(problem) for problem in error.problems]
    elif isinstance(error, IncompatiblePeerError):
        data |= {"peer": error.peer, "misfits": [attrs.asdict(misfit) for misfit in error.misfits]}
    elif isinstance(error, KVTransferError):
        data["code"] = error.code.value
    return data


def _outcome(command: Callable[[], int], as_data: bool) -> int:
    error: BaseException
    try:
        return command()
    except KeyboardInterrupt as stop:
        signal_of = stop if isinstance(stop, Interrupted) else Interrupted(signal.SIGINT)
        status, error = SIGNALLED + signal_of.signum, signal_of
    except UsageError as usage:
        status, error = USAGE, usage
    except (OutputError, _ReaderGoneError):
        raise
    except Exception as other:
        _blame_output(other)
        status, error = FAILED, other
    if as_data:
        say(json.dumps({"error": error_data(error)}, indent=2))
    else:
        warn(_text(error))
    return status


def _blame_output(error: Exception) -> None:
    """Raise if an error is one of standard output."""
    if isinstance(error, OSError):
        try:
            sys.stdout.flush()
        except OSError as same:
            raise _lost(same) from error


def _text(error: BaseException) -> str:
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, PDCoreError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, Interrupted):
        return f"interrupted by {error.name}"
    if os.environ.get(TRACEBACK):
        return "".join(traceback.format_exception(error)).rstrip()
    return str(explained(error))


def explained(error: BaseException) -> PDCoreError:
    """Return any error in the form of pdcore's own, which are returned as they are."""
    if isinstance(error, PDCoreError):
        return error
    if isinstance(error, Interrupted):
        return PDCoreError(f"interrupted by {error.name}", "it had not come to its end", "run it again")
    frames = traceback.extract_tb(error.__traceback__)
    where = f"it came from {frames[-1].filename}:{frames[-1].lineno}, {frames[-1].name}()" if frames else "-"
    return PDCoreError(
        f"an error that pdcore does not know: {type(error).__name__}: {error}",
        where,
        f"report it, with what {TRACEBACK}=1 shows",
    )


def _lost(error: OSError) -> Exception:
    if error.errno == errno.EPIPE:
        return _ReaderGoneError()
    return OutputError(
        "standard output cannot be written",
        error.strerror or str(error),
        "send it to an open file or pipe, on a disk that has room",
    )


def _missed(error: OSError) -> int:
    """Return the status of a command that was good, but whose output is lost; say so if anybody misses it."""
    if error.errno == errno.EPIPE:
        return SIGNALLED + signal.SIGPIPE
    warn(_text(_lost(error)))
    return FAILED


def _mute(stream: TextIO) -> None:
    """Let a stream that cannot be written to end in nothing, or the interpreter trips over what it holds."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


def _fill_closed() -> None:
    """Open something at each standard descriptor that was closed, before a socket gets its number.

    Standard output then refuses what is written to it, as a closed one does.
    """
    for fd, name, flags, mode in (
        (0, "stdin", os.O_RDONLY, "r"),
        (1, "stdout", os.O_RDONLY, "w"),
        (2, "stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is not None:
            continue
        with contextlib.suppress(OSError):
            if os.open(os.devnull, flags) == fd:  # the lowest that is free
                os.set_inheritable(fd, True)
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - for good


@contextlib.contextmanager
def _heard() -> Iterator[_Signalled]:
    """Have signals raise :class:`Interrupted` meanwhile; a second one ends the process at once."""
    signalled = _Signalled()
    if threading.current_thread() is not threading.main_thread():
        yield signalled
        return

    def hear(signum: int, _frame: FrameType | None) -> None:
        if signalled.signum:
            os._exit(SIGNALLED + signum)
        signalled.signum = signum
        raise Interrupted(signum)

    # One that is ignored stays so, as under nohup.
    before = {s: signal.getsignal(s) for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, hear)
    try:
        yield signalled
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if signalled.signum else handler)
