"""What an engine shares with its threads: regions, peers, completions."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from queue import SimpleQueue

from . import faults
from .descriptors import EngineDesc, MemoryDesc
from .findings import ends, report
from .flights import check_end_of_engine
from .lanes import RETRY_EXCEEDED, Completions, Lane, Owner, ask_size, cut, dial, end
from .values import PeerFailureEvent, PeerFailureReason, RdmaBackendConfig


class Core:
    """What an engine shares with its threads; outlives the engine only until they have ended."""

    def __init__(self, key: str, host: str) -> None:
        self.key, self.host = key, host
        self.config: RdmaBackendConfig | None = None
        self.owner: Owner | None = None
        self.regions: dict[int, MemoryDesc] = {}
        self.visible: set[int] = set()
        """Ids of the memory that was registered after the backend: only those can peers reach."""
        self.remotes: dict[str, EngineDesc] = {}
        self.failures: deque[PeerFailureEvent] = deque()
        self._lanes: dict[str, list[Lane]] = {}
        self._sizes: dict[tuple[str, int], int] = {}
        self._connecting = threading.Lock()
        self._sessions: dict[str, threading.Lock] = {}
        self._completions: Completions = SimpleQueue()
        self._completer: threading.Thread | None = None

    def listen(self, port: int) -> None:
        host = self.host
        try:
            socket.inet_aton(host)
        except OSError:
            report("would exit", f"host {host!r} is no IPv4 literal: no peer will be able to connect")
            host = "127.0.0.1"
        try:
            self.owner = Owner(host, port, self._find)
        except OSError as error:
            raise ends(
                "would exit", f"{host}:{port}: syscall failed with {os.strerror(error.errno or 0)}"
            ) from None
        self._completer = threading.Thread(
            target=self._complete, name=f"mori-double-completions-{self.key}", daemon=True
        )
        self._completer.start()

    def _find(self, memory_id: int) -> tuple[int, int] | None:
        desc = self.regions.get(memory_id)
        return (desc.data, desc.size) if desc is not None and memory_id in self.visible else None

    def _complete(self) -> None:
        while (ended := self._completions.get()) is not None:
            faults.open_gate.wait()
            threading.Event().wait(faults.delay)
            flight, error = ended
            if error == RETRY_EXCEEDED:
                self.failures.append(unreachable(flight.remote[0]))
            flight.landed(error)

    def session(self, remote: MemoryDesc) -> list[Lane]:
        """Return the lanes to a peer, which are made once per engine key and never again.

        As in the real library, a connect that hangs holds up the transfers to all peers, and a peer that
        accepts and never answers only its own.
        """
        assert self.config is not None
        engine = self.remotes[remote.engine_key]
        with self._connecting:
            peer_lock = self._sessions.setdefault(engine.key, threading.Lock())
        with peer_lock:
            known = (remote.engine_key, remote.id)
            if known not in self._sizes:
                with self._connect(engine) as connection:
                    size = ask_size(connection, remote.id)
                if size != remote.size:
                    raise RuntimeError(
                        f"RdmaBackend::CreateSession: remote MR size mismatch for engine {engine.key} "
                        f"rdevId=0 memId={remote.id} expected={remote.size} got={size}"
                    )
                self._sizes[known] = size
            if engine.key not in self._lanes:
                self._lanes[engine.key] = [
                    Lane(engine.key, qp, self._connect(engine), self._completions)
                    for qp in range(self.config.qp_per_transfer)
                ]
            return self._lanes[engine.key]

    def _connect(self, engine: EngineDesc) -> socket.socket:
        with self._connecting:
            return dial(engine.host, engine.port)

    def close(self) -> None:
        """End all threads; what is in flight stays IN_PROGRESS for ever."""
        check_end_of_engine(self.key)
        for lane in [lane for lanes in self._lanes.values() for lane in lanes]:
            lane.jobs.put(None)
            cut(lane.connection)
            end(lane)
            lane.connection.close()
        if self.owner and self._completer:
            self.owner.close()
            self._completions.put(None)
            if faults.open_gate.is_set():
                end(self._completer)


def unreachable(key: str) -> PeerFailureEvent:
    event = PeerFailureEvent()
    event._remote_engine_key, event._reason = key, PeerFailureReason.PEER_UNREACHABLE
    event._port_num, event._device_name = 1, "double_0"
    event._detail = (
        "completion status transport retry counter exceeded: "
        "peer did not acknowledge within the transport retry budget"
    )
    return event
