"""A process that runs tests, as its watcher sees it: what it tells, how long it is silent, how it ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType, TracebackType

import msgspec

from pdcore.model import Deadline
from pdcore.testing.exit_words import how_it_ended
from pdcore.testing.told import Begun, Errand, Told

__all__ = ["SuiteProcess", "Wakeup"]

LAST_WORDS = 10.0
"""Seconds that a process may take to end after its last words."""

_decoder: msgspec.json.Decoder[Told] = msgspec.json.Decoder(Told)


class Wakeup:
    """A pipe that wakes who polls it when a signal comes. ``signal`` is that signal, else 0."""

    def __init__(self) -> None:
        self.signal = 0
        self.fd, self._write = -1, -1

    def __enter__(self) -> Wakeup:
        self.fd, self._write = os.pipe()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        os.close(self._write)

    def heard(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.signal = number
        os.write(self._write, b"!")


class SuiteProcess:
    """A running :mod:`pdcore.testing.suite` in a session of its own: all that it starts ends with it.

    ``seconds`` is how long the last test that was told of has run. ``ended`` says in words with what the
    process ended, once it was seen to, and ``well`` whether that was all right.
    """

    def __init__(self, errand: Errand, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._pipe, there = os.pipe()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        # Without assertions every test would pass.
        kept.pop("PYTHONOPTIMIZE", None)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
                [sys.executable, "-m", "pdcore.testing.suite", str(there)],
                stdin=subprocess.PIPE,
                stdout=2,  # what an engine's library prints must not end up in JSON
                pass_fds=(there,),
                start_new_session=True,
                env=kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            )
        finally:
            os.close(there)
        self._errand = errand
        self._exit = os.pidfd_open(self._process.pid)
        self._received = b""
        self._began = time.monotonic()
        self.ended = ""
        self.well = False

    def __enter__(self) -> SuiteProcess:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(self._errand) + b"\n")
            self._process.stdin.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and all that it started, and reap it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self._pipe)
        os.close(self._exit)

    @property
    def seconds(self) -> float:
        """Seconds since the last test began (or the process did)."""
        return time.monotonic() - self._began

    def next(self, seconds: float) -> Told | None:
        """Return what the process tells next; None if it has ended, a signal came, or it was silent too long.

        Too long: the test that it runs has taken more than so many seconds.
        """
        while b"\n" not in self._received:
            if self._wakeup.signal or not self._more(Deadline.after(max(0.0, seconds - self.seconds))):
                return None
        line, _, self._received = self._received.partition(b"\n")
        told = _decoder.decode(line)
        if isinstance(told, Begun):
            self._began = time.monotonic()
        return told

    def _more(self, deadline: Deadline) -> bool:
        ready = select.poll()
        for fd in (self._pipe, self._exit, self._wakeup.fd):
            ready.register(fd, select.POLLIN)
        found = {fd for fd, _ in ready.poll(1000 * deadline.remaining())}
        if self._pipe in found:
            piece = os.read(self._pipe, 1 << 16)
            self._received += piece
            if piece:
                return True
            self._await_end()  # it has told all; its end tells the rest
        elif self._exit in found:
            self._look_at_end()
        return False

    def _await_end(self) -> None:
        ready = select.poll()
        for fd in (self._exit, self._wakeup.fd):
            ready.register(fd, select.POLLIN)
        if ready.poll(1000 * LAST_WORDS):
            self._look_at_end()
        else:
            self.ended = f"had not ended {LAST_WORDS:g} s later"

    def _look_at_end(self) -> None:
        """Learn with what the process ended; it is reaped later, so that its group's number stays its own."""
        status = os.waitid(os.P_PIDFD, self._exit, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if status is not None:
            self.well = status.si_status == 0
            by_exit = status.si_code == os.CLD_EXITED
            self.ended = how_it_ended(status.si_status if by_exit else -status.si_status)
