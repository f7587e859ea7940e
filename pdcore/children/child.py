"""The parent's end: a child process that is started, told, asked, heard and ended, each with a deadline."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NoReturn, TypeVar

import msgspec

from pdcore.children.messages import Answer, Fatal, Gone, Question, QuestionFailed, answer_type
from pdcore.children.printed import READ_BYTES, Printed, write_all
from pdcore.children.process import OwnedProcess, without_interrupt
from pdcore.errors import PDCoreError
from pdcore.model import Deadline

__all__ = ["Child", "ChildError", "heard"]

KILL_SECONDS = 10.0
ANSWER_SECONDS = 60.0
LAST_WORDS = 1.0
"""Seconds that reading the rest of what an ended child printed may take."""

AnswerT = TypeVar("AnswerT")
CommandT_contra = TypeVar("CommandT_contra", contravariant=True)
EventT_co = TypeVar("EventT_co", covariant=True)
KindT = TypeVar("KindT")
SelfT = TypeVar("SelfT", bound="Child[NoReturn, object]")


class ChildError(PDCoreError):
    """A child did not do what it was asked to: what it did instead, and what it printed last."""


class Child(Generic[CommandT_contra, EventT_co]):
    """A Python module that runs as a child process; a context manager that leaves no process behind.

    ``name`` stands for it in errors. Its standard output carries only its events, and what it prints goes to
    this process's stderr. ``settings`` is the first line that it gets. With ``session`` all that it starts
    ends with it. One thread at a time may use it.
    """

    def __init__(
        self,
        name: str,
        module: str,
        settings: msgspec.Struct | None,
        decode: Callable[[bytes], EventT_co],
        *,
        session: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._decode = decode
        self._session = session
        self._partial: list[bytes] = []
        self._events: deque[EventT_co | Gone] = deque()
        self._gone: Gone | None = None
        self._closed = self._paused = False
        with without_interrupt():
            self._process = OwnedProcess(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                start_new_session=session,
            )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        os.set_blocking(stdout.fileno(), False)
        self._end = os.pidfd_open(self.pid)
        self._listening = [stdout.fileno(), self._end]
        self._printed = Printed(stderr.fileno(), self.pid)
        self._write(settings)

    def __enter__(self: SelfT) -> SelfT:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def __del__(self) -> None:
        if hasattr(self, "_printed"):  # else it was not made to its end, and the process ends by itself
            self.kill()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs, or is paused."""
        return self._status() is None

    @property
    def pending(self) -> bool:
        """Whether there are events to drain."""
        return bool(self._events)

    @property
    def descriptors(self) -> Sequence[int]:
        """What becomes readable when :meth:`receive` has something to do; nothing once it is gone."""
        return () if self._gone else self._listening

    def tell(self, command: CommandT_contra) -> None:
        """Send a command; to a dead process it does nothing, since its :class:`Gone` is on the way."""
        self._write(command)

    def read(self, deadline: Deadline) -> EventT_co | Gone | None:
        """Return the next event, or None once the deadline passed; after :class:`Gone` only None."""
        return self._events.popleft() if heard([self], deadline) else None

    def expect(self, kind: type[KindT], deadline: Deadline, what: str = "did not answer") -> KindT:
        """Return the next event, which must be of a kind.

        Raises:
            ChildError: it is of another, the process ended, or nothing came by the deadline.
        """
        seconds = deadline.remaining()
        event = self.read(deadline)
        if isinstance(event, kind):
            return event
        raise self.error(what, event, seconds)

    def error(self, what: str, event: object, seconds: float = 0.0) -> ChildError:
        """Return the error that says what it told instead: an event, or nothing in so many seconds."""
        to_do = "look at what it logged; `pdcore doctor` says what a backend needs"
        return ChildError(f"{self.name} {what}", self._instead(event, seconds), to_do)

    def ask(self, question: Question[AnswerT], deadline: Deadline | None = None) -> AnswerT:
        """Return the typed answer to a question; without a deadline it may take a minute.

        Raises:
            ChildError: it failed there, the process ended, or nothing came by the deadline.
        """
        self._write(question)
        return self.answer(question, deadline or Deadline.after(ANSWER_SECONDS))

    def answer(self, question: Question[AnswerT], deadline: Deadline) -> AnswerT:
        """Return the answer to a question that it was told before.

        Raises:
            ChildError: as :meth:`ask` does.
        """
        value = self.expect(Answer, deadline, f"did not answer {type(question).__name__}").value
        return msgspec.json.decode(value, type=answer_type(question))

    def receive(self) -> None:
        """Take in what the process wrote, or that it has ended; never waits."""
        status = self._status()  # asked first: what it wrote before its end is there by now
        data = self._available()
        if data:
            head, *rest = data.split(b"\n")
            self._partial.append(head)  # joined once: a line may be megabytes long
            if rest:
                lines = [b"".join(self._partial), *rest[:-1]]
                self._partial = [rest[-1]]
                self._events.extend(map(self._decode, lines))
        elif status is not None:
            self._gone = Gone(self.pid, status)
            self._events.append(self._gone)

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

    def crash(self) -> None:
        """Have the process end as by a crash (SIGKILL); its :class:`Gone` is on the way."""
        if self._process.returncode is not None:
            return
        if self._session:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        else:
            self._process.kill()

    def kill(self) -> None:
        """End the process at once, wait for it, and give back all that was held for it; idempotent."""
        if self._closed:
            return
        self.crash()
        self._process.wait(KILL_SECONDS)
        while not self._gone:
            self.receive()
        self._closed = True
        self._printed.close()
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()
        os.close(self._end)

    def pause(self) -> None:
        """Suspend the process (SIGSTOP), and wait until it is."""
        self._process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):  # it has ended
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._paused = True

    def resume(self) -> None:
        """Let a suspended process go on."""
        self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def printed(self) -> str:
        """Return the last lines that it printed."""
        return self._printed.last(LAST_WORDS if self._gone else 0.0)

    def _write(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            write_all(self._stdin.fileno(), msgspec.json.encode(message) + b"\n")

    def _available(self) -> bytes:
        try:
            data = os.read(self._stdout.fileno(), READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self._listening = [self._end]
        return data

    def _status(self) -> int | None:
        """Return with what the process has ended, None while it runs; whoever reaps it frees its number."""
        if self._process.returncode is not None:
            return self._process.returncode
        found = os.waitid(os.P_PIDFD, self._end, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def _instead(self, event: object, seconds: float) -> str:
        """Say what the child did instead of what was expected."""
        match event or self._gone:
            case Fatal(error):
                return error  # which says all
            case QuestionFailed(traceback=traceback):
                return traceback
            case Gone() as gone:
                did = f"it {gone.how}"
            case None:
                did = f"nothing came within {seconds:.3g} s; it {'is paused' if self._paused else 'runs'}"
            case _:
                did = f"it said {event!r}"
        printed = self.printed()
        return f"{did}; it printed last:\n{printed}" if printed else did


ChildT = TypeVar("ChildT", bound="Child[NoReturn, object]")


def heard(children: Sequence[ChildT], deadline: Deadline, wake: int | None = None) -> list[ChildT]:
    """Return the children that have events to drain, waiting for the first.

    An empty list: the deadline passed, all are gone, or the descriptor ``wake`` became readable.
    """
    while not (ready := [c for c in children if c.pending]):
        owners = {fd: child for child in children for fd in child.descriptors}
        if not owners:
            return []
        poll = select.poll()
        for fd in (*owners, *(() if wake is None else (wake,))):
            poll.register(fd, select.POLLIN)
        speaking = {owners[fd] for fd, _ in poll.poll(1000 * deadline.remaining()) if fd in owners}
        if not speaking:
            return []
        for child in speaking:
            child.receive()
    return ready
