"""The near side's handle on a far process. Every wait on it has a deadline."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TypeVar

import msgspec

from pdcore.model import Deadline
from pdcore.testing import commands as c
from pdcore.testing.exit_words import how_it_ended

__all__ = ["FarError", "FarProcess"]

T = TypeVar("T")

ANSWER = 60.0
"""Seconds that an answer may take."""

STDERR = 2


class FarError(AssertionError):
    """A command failed in the far process; ``error`` is the name of the exception's class there."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error


class _Answer(msgspec.Struct):
    value: msgspec.Raw
    error: str = ""
    text: str = ""


class FarProcess:
    """A process that runs :mod:`pdcore.testing.farside`, and ends with its handle."""

    def __init__(self) -> None:
        # What an engine's library prints must not end up in the near side's stdout, which may be JSON.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pdcore.testing.farside"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=STDERR,
            bufsize=0,
        )
        self._received = b""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs (or is stopped)."""
        return self._process.poll() is None

    def ask(self, command: c.Command, answer: type[T], seconds: float = ANSWER) -> T:
        """Return the typed answer to a command.

        Raises:
            FarError: the command failed, the process ended, or no answer came in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        except BrokenPipeError:
            raise FarError("Ended", f"the far process {self.pid} has ended") from None
        got = msgspec.json.decode(self._line(Deadline.after(seconds)), type=_Answer)
        if got.error:
            raise FarError(got.error, got.text)
        return msgspec.json.decode(got.value, type=answer)

    def tell(self, command: c.Command, seconds: float = ANSWER) -> None:
        """Have a command executed that answers nothing."""
        self.ask(command, type(None), seconds)

    def kill(self) -> None:
        """End the process as a crash would, and reap it."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Suspend the process, and wait until it is."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let a suspended process go on."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill and reap the process, and close its pipes; idempotent."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _line(self, deadline: Deadline) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        pieces = [self._received]
        while b"\n" not in pieces[-1]:
            if not ready.poll(1000 * deadline.remaining()):
                raise FarError("Deadline", f"the far process {self.pid} did not answer in time")
            piece = os.read(pipe, 1 << 20)
            if not piece:
                raise FarError("Ended", f"the far process {self.pid} {how_it_ended(self._process.wait())}")
            pieces.append(piece)
        line, _, self._received = b"".join(pieces).partition(b"\n")
        return line
