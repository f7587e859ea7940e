"""A child process that speaks JSON lines: start it, send commands, read events with a deadline, kill it."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import attrs
import msgspec

from pdcore.model import Deadline

__all__ = ["Child", "Gone", "speaking"]

READ_BYTES = 65536
KILL_SECONDS = 10.0

EventT_co = TypeVar("EventT_co", covariant=True)
SelfT = TypeVar("SelfT", bound="Child[object]")


@attrs.frozen
class Gone:
    """The last event of every child: its process has ended; ``how`` says with which status or signal."""

    pid: int
    how: str


class Child(Generic[EventT_co]):
    """A Python module that runs as a child process; a context manager that leaves no process behind.

    The child's standard output carries only its events; what it logs goes to the parent's stderr.
    """

    def __init__(self, module: str, settings: msgspec.Struct, decode: Callable[[bytes], EventT_co]) -> None:
        with _without_interrupt():
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._decode = decode
        self._partial = b""
        self._events: deque[EventT_co | Gone] = deque()
        self._gone = False
        self.send(settings)

    def __enter__(self: SelfT) -> SelfT:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """Whether the process was seen to end."""
        return self._gone

    @property
    def pending(self) -> bool:
        """Whether there are events to drain."""
        return bool(self._events)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there are events."""
        return self._stdout.fileno()

    def send(self, command: msgspec.Struct) -> None:
        """Send a command; to a dead process it does nothing, since its :class:`Gone` is on the way."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._stdin.write(msgspec.json.encode(command) + b"\n")

    def read(self, deadline: Deadline) -> EventT_co | Gone | None:
        """Return the next event, or None once the deadline passed; after :class:`Gone` only None."""
        return self._events.popleft() if speaking([self], deadline) else None

    def receive(self) -> None:
        """Take in what the process wrote; blocks if there is nothing to read."""
        data = os.read(self._stdout.fileno(), READ_BYTES)
        if not data:
            self._gone = True
            self._events.append(Gone(self.pid, self._how()))
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._events.extend(self._decode(line) for line in lines)

    def drain(self) -> list[EventT_co | Gone]:
        """Return the events received so far."""
        events = list(self._events)
        self._events.clear()
        return events

    def hang_up(self) -> None:
        """Close its command pipe, which it sees as the end of this process."""
        self._stdin.close()

    def finish(self, deadline: Deadline) -> list[EventT_co | Gone]:
        """Wait for the process to end, and kill it at the deadline; return its last events."""
        events: list[EventT_co | Gone] = []
        while (event := self.read(deadline)) is not None:
            events.append(event)
        self.kill()
        return events

    def kill(self) -> None:
        """End the process at once (SIGKILL), if it runs, and wait for it; idempotent."""
        self._process.kill()
        self._process.wait(KILL_SECONDS)
        self._stdin.close()
        while not self._gone:
            self.receive()
        self._stdout.close()

    def _how(self) -> str:
        try:
            status = self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its output but still runs"
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


@contextlib.contextmanager
def _without_interrupt() -> Iterator[None]:
    """Block SIGINT, for a child that inherits this: Ctrl-C is for its parent, which ends it in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


ChildT = TypeVar("ChildT", bound="Child[object]")


def speaking(children: Sequence[ChildT], deadline: Deadline) -> list[ChildT]:
    """Return the children that have events to drain, waiting until the deadline for the first; [] then."""
    while not (ready := [c for c in children if c.pending]):
        listening = [c for c in children if not c.gone]
        readable = _readable(listening, deadline) if listening else []
        if not readable:
            return []
        for child in readable:
            child.receive()
    return ready


def _readable(children: Sequence[ChildT], deadline: Deadline) -> list[ChildT]:
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child, selectors.EVENT_READ, child)
        return [key.data for key, _ in selector.select(deadline.remaining())]
