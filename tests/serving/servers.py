"""Servers as real processes: started together, waited for, killed by session, started again."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from . import sessions
from .engines import Command, Role
from .nursery import Launch, Process, spawned
from .sessions import Usage

UP = 600.0
"""Seconds for a server to answer /health on an overloaded machine; on an idle one it takes 30 to 60."""
LOOK = 0.2
TAIL = 60
"""Lines of its log that a failure shows."""


class ServerError(RuntimeError):
    """A server ended, or did not answer in time; the text has the end of its log."""


class Server:
    """One server and the log of all its lives. The caller ends it: ``with``, or ``kill``."""

    def __init__(self, name: str, command: Command, logs: Path, launch: Launch = spawned) -> None:
        self.name = name
        self.command = command
        self.log = logs / f"{name}.log"
        self._rooms = logs / f"{name}.rooms"
        self._corrupt = logs / f"{name}.corrupt"
        self._rooms.unlink(missing_ok=True)
        self._corrupt.unlink(missing_ok=True)
        self._launch = launch
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.command.port}"

    @property
    def role(self) -> Role:
        return self.command.role

    @property
    def bootstrap(self) -> int:
        """The port of a prefill server's bootstrap service."""
        assert self.command.bootstrap is not None, f"{self.name} has no bootstrap service"
        return self.command.bootstrap

    @property
    def pid(self) -> int:
        """The process that was started, which leads the session of all others."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(self) -> Server:
        """Start the process; ``ready`` waits for it."""
        assert self._process is None, f"{self.name} runs already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PDCORE_", "PYTEST_"))}
        watched = {"SERVING_ROOMS": str(self._rooms), "SERVING_CORRUPT": str(self._corrupt)}
        environment = inherited | watched | dict(self.command.environment)
        self._process = self._launch(self.command, environment, self.log)
        return self

    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        return self._process is not None and self._process.poll() is None

    def healthy(self) -> bool:
        """Whether it answers /health now."""
        link = http.client.HTTPConnection("127.0.0.1", self.command.port, timeout=5)
        try:
            link.request("GET", "/health")
            return link.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()

    def ready(self, seconds: float = UP) -> Server:
        """Wait until it answers; ``ServerError`` as soon as it ended, or when time is up."""
        until = time.monotonic() + seconds
        while not self.healthy():
            if not self.alive():
                raise ServerError(f"{self.name} ended before it was ready. {self.end_of_log()}")
            if time.monotonic() > until:
                raise ServerError(f"{self.name} was not ready after {seconds:.0f} s. {self.end_of_log()}")
            time.sleep(LOOK)  # HTTP has no way to be told
        return self

    def end_of_log(self) -> str:
        """The last lines of its log, with the path of the rest."""
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:] if self.log.exists() else []
        return "\n".join([f"The end of {self.log}:", *lines])

    def usage(self) -> Usage:
        """What all its processes hold now."""
        return sessions.usage(self.pid) if self._process is not None else Usage()

    def rooms(self) -> list[dict[str, Any]]:
        """What pdcore told of each room that ended, in order; see ``watch/pdcore_serving_watch.py``."""
        return (
            [json.loads(line) for line in self._rooms.read_text().splitlines()]
            if self._rooms.exists()
            else []
        )

    @contextmanager
    def corrupting(self) -> Iterator[None]:
        """Meanwhile this prefill server sends other bytes than those of the pages."""
        self._corrupt.touch()
        try:
            yield
        finally:
            self._corrupt.unlink()

    def kill(self) -> None:
        """kill -9 for all its processes; nothing happens to one that does not run."""
        if self._process is None:
            return
        sessions.kill(self._process.pid)
        self._process.wait()
        sessions.kill(self._process.pid)  # who was born meanwhile
        assert sessions.gone(self._process.pid, 30.0), f"{self.name} has processes that SIGKILL does not end"
        self._process = None

    def stop(self, seconds: float = 30.0) -> bool:
        """SIGTERM as a supervisor does, then ``kill``; tell whether all ended by themselves."""
        if self._process is None:
            return True
        self._process.terminate()
        deadline = time.monotonic() + seconds
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        ended = sessions.gone(self._process.pid, deadline - time.monotonic())
        self.kill()
        return ended

    def restart(self) -> Server:
        """Kill it and start it anew on the same ports; ``ready`` waits."""
        self.kill()
        return self.start()

    def __enter__(self) -> Server:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class Servers:
    """Servers that start at once and end together; ``launch`` starts a process."""

    def __init__(self, logs: Path, launch: Launch = spawned) -> None:
        self._logs = logs
        self._launch = launch
        self.running: list[Server] = []

    def start(self, **commands: Command) -> list[Server]:
        """Start one server per named command, and return at once."""
        made = [
            Server(name, command, self._logs, spawned if command.alone else self._launch)
            for name, command in commands.items()
        ]
        for server in made:
            self.running.append(server.start())
        return made

    def up(self, **commands: Command) -> list[Server]:
        """Start servers, and return when all answer."""
        return ready(self.start(**commands))

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.running:
            server.kill()


def ready(servers: Iterable[Server]) -> list[Server]:
    """Wait until all answer; ``ServerError`` of the first that does not. Who started them ends them."""
    return [server.ready() for server in servers]
