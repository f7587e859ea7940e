"""Somebody between a dialler and a bound side: records what they say, changes it, and says it again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

__all__ = ["Relay"]


class Relay:
    """Passes TCP connections on to a bound side; without one, it sends everything back to the dialler.

    The lists hold what was read at a time. ``change`` bends what goes to the bound side; while ``flows`` is
    cleared, the kernels take what is said and nobody hears it. Everything ends with the ``with``.
    """

    def __init__(self, bound: str | None) -> None:
        self._bound = bound
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.to_bound: list[bytes] = []
        self.to_dialler: list[bytes] = []
        self.change: Callable[[bytes], bytes] | None = None
        self.flows = threading.Event()
        self.flows.set()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Relay:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.flows.set()
        for thread in self._threads[:1]:
            thread.join(30)
        self.hang_up()
        for thread in self._threads:
            thread.join(30)
        for end in (*self._open, self._listener):
            end.close()

    def hang_up(self) -> None:
        """End every connection; who dials again is served."""
        for end in self._open:
            _hang_up(end)

    def play(self, recorded: list[bytes]) -> None:
        """Say to the bound side what was recorded, as fast as it comes, and hang up."""
        assert self._bound is not None
        host, _, port = self._bound.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            try:
                for said in recorded:
                    connection.sendall(said)
                while connection.recv(4096):
                    pass
            except OSError:
                pass

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                dialler, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(dialler)
            if self._bound is None:
                self._start(self._pass_on, dialler, dialler, self.to_bound)
                continue
            host, _, port = self._bound.rpartition(":")
            bound = socket.create_connection((host, int(port)), timeout=None)
            self._open.append(bound)
            self._start(self._pass_on, dialler, bound, self.to_bound)
            self._start(self._pass_on, bound, dialler, self.to_dialler)

    def _pass_on(self, source: socket.socket, target: socket.socket, heard: list[bytes]) -> None:
        try:
            while said := source.recv(65_536):
                heard.append(said)
                self.flows.wait()
                bend = self.change if heard is self.to_bound else None
                target.sendall(bend(said) if bend is not None else said)
        except OSError:
            pass
        _hang_up(target)


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
