"""Servers that need not import their engine: forks of a process that has done so once.

An engine's imports take most of the 40 seconds of CPU time that a server needs to start, in three processes
one after the other. What a fork runs afterwards is what ``python -m`` would run, but for its children: they
are forked too, where the engine would have spawned them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from .engines import Command, Engine, Settings

NEST = Path(__file__).parent / "nest.py"
PATIENCE = 600.0
"""Seconds for the imports on an overloaded machine; on an idle one they take 25."""


class Process(Protocol):
    """What a server needs of its first process: as of ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...


Launch = Callable[[Command, Mapping[str, str], Path], Process]
"""Starts a command in a session of its own, with an environment, and with its log."""


def spawned(command: Command, environment: Mapping[str, str], log: Path) -> Process:
    """Start a command as its users do."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(command.engine.python), *command.arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Forked:
    """A process that is no child of ours. How it ended nobody can tell: its status is 0."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._file: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._file = None

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self._file is not None:
            if not select.select([self._file], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            os.close(self._file)
            self._file = None
        return 0

    def terminate(self) -> None:
        if self.poll() is None and self._file is not None:
            signal.pidfd_send_signal(self._file, signal.SIGTERM)


class Nursery:
    """The process that has imported an engine; ``launch``, of one thread, waits until it has. Its forks
    outlive it."""

    def __init__(self, python: Path, imports: tuple[str, ...], environment: Settings, log: Path) -> None:
        self._command = (str(python), "-P", str(NEST), *imports)
        self._environment = environment
        self._log = log
        self._nest: subprocess.Popen[str] | None = None

    @classmethod
    def of(cls, engine: Engine, logs: Path) -> Nursery:
        """Return the one of an engine's servers."""
        return cls(engine.python, engine.imports, engine.settings, logs / "nursery.log")

    def launch(self, command: Command, environment: Mapping[str, str], log: Path) -> Process:
        """Fork a server."""
        assert self._nest is not None
        assert self._nest.stdin is not None
        assert self._nest.stdout is not None
        asked = {"arguments": command.arguments, "environment": dict(environment), "log": str(log.absolute())}
        self._nest.stdin.write(json.dumps(asked) + "\n")
        self._nest.stdin.flush()
        came = select.select([self._nest.stdout], [], [], PATIENCE)[0]
        assert came, f"the nursery has not answered within {PATIENCE:.0f} s; see {self._log}"
        answer = self._nest.stdout.readline()
        assert answer, f"the nursery has ended; see {self._log}"
        return Forked(int(answer))

    def __enter__(self) -> Nursery:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._nest = subprocess.Popen(
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._nest is not None:
            self._nest.kill()
            self._nest.communicate()
