"""What exporters show of the managers of a process: names, labels, and how managers add up."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import attrs

from pdcore.events import Gauges, Node, PeerState, Watcher
from pdcore.host.descriptors import OWNERS, SOCKET_STATES, Descriptors, look
from pdcore.model import Incarnation, KVPoll

__all__ = ["FIGURES", "Figure", "Samples", "Scene", "Watched"]

Samples = dict[tuple[str, ...], float]
"""Values by those of the labels. Managers of one side and backend add up."""

SIDE = ("side", "backend")


class Scene:
    """What is looked at for one scrape: the managers' figures, and this process once it is asked for."""

    def __init__(self, managers: Sequence[Gauges]) -> None:
        self.managers = managers

    @cached_property
    def process(self) -> Descriptors:
        """What this process has open."""
        return look()


@attrs.frozen
class Figure:
    """A gauge: its name without ``pdcore_``, what it says, its labels, and how it is told from a scene."""

    name: str
    text: str
    labels: tuple[str, ...]
    of: Callable[[Scene], Samples]


class Watched:
    """The managers whose figures are shown. The lock guards ``_read`` and ``_watchers``.

    A manager that several exporters watch counts once, and is gone when the last of them lets it go. In a
    forked child there is none: they belong to the parent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._read: dict[Incarnation, Callable[[], Gauges]] = {}
        self._watchers: dict[Incarnation, list[Watcher]] = {}

    def watch(self, watcher: Watcher, node: Node, read: Callable[[], Gauges]) -> None:
        """Show a manager from now on."""
        with self._lock:
            self._read[node.incarnation] = read
            self._watchers.setdefault(node.incarnation, []).append(watcher)

    def unwatch(self, watcher: Watcher, node: Node) -> None:
        """Show it no more for this exporter."""
        with self._lock:
            left = [w for w in self._watchers.pop(node.incarnation, []) if w is not watcher]
            if left:
                self._watchers[node.incarnation] = left
            else:
                self._read.pop(node.incarnation, None)

    def scene(self) -> Scene:
        """Return the figures of all managers, as they are now."""
        if os.getpid() != self._pid:
            return Scene([])
        with self._lock:
            reads = list(self._read.values())
        return Scene([read() for read in reads])


def _where(gauges: Gauges) -> tuple[str, str]:
    return gauges.node.role.value, gauges.node.backend


def _sum(of: Callable[[Gauges], float]) -> Callable[[Scene], Samples]:
    def samples(scene: Scene) -> Samples:
        found: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for gauges in scene.managers:
            found[_where(gauges)] += of(gauges)
        return found

    return samples


def _split(of: Callable[[Gauges], Iterable[tuple[str, int]]]) -> Callable[[Scene], Samples]:
    def samples(scene: Scene) -> Samples:
        found: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for gauges in scene.managers:
            side, backend = _where(gauges)
            for value, count in of(gauges):
                found[side, backend, value] += count
        return found

    return samples


def _quiet(scene: Scene) -> Samples:
    found: Samples = {}
    for gauges in scene.managers:
        found[_where(gauges)] = max(found.get(_where(gauges), 0.0), gauges.quiet)
    return found


def _descriptors(scene: Scene) -> Samples:
    return {(kind,): count for kind, count in scene.process.kinds.items()}


def _limit(scene: Scene) -> Samples:
    return {(): scene.process.limit}


def _sockets(scene: Scene) -> Samples:
    control = {port for gauges in scene.managers for port in gauges.control_ports}
    bootstrap = {port for gauges in scene.managers for port in gauges.bootstrap_ports}
    none: Samples = {(owner, state): 0 for owner in OWNERS for state in SOCKET_STATES}
    return none | scene.process.owned(control, bootstrap)


FIGURES = (
    Figure(
        "managers",
        "Managers that are not closed, by whether they take rooms.",
        (*SIDE, "state"),
        _split(lambda g: [("serving", int(g.serving)), ("not_serving", int(not g.serving))]),
    ),
    Figure(
        "control_thread_quiet_seconds",
        "Seconds since the control thread last looked at deadlines and heartbeats: of the quietest manager.",
        SIDE,
        _quiet,
    ),
    Figure(
        "registered",
        "Managers of prefill, by whether the bootstrap service knows them and their lease holds.",
        (*SIDE, "state"),
        _split(
            lambda g: (
                [("registered", int(g.registered)), ("not_registered", int(not g.registered))]
                if g.registered is not None
                else []
            )
        ),
    ),
    Figure(
        "open_rooms",
        "Rooms that are not cleared, by state; success and failed ones wait for clear().",
        (*SIDE, "state"),
        _split(lambda g: [(state.name.lower(), g.rooms.get(state, 0)) for state in KVPoll]),
    ),
    Figure(
        "peers",
        "Peers by state; lost ones as long as something that they took is held.",
        (*SIDE, "state"),
        _split(lambda g: [(state.value, g.peers.get(state, 0)) for state in PeerState]),
    ),
    Figure(
        "parked_requests",
        "Requests of decode for rooms that prefill has not opened yet.",
        SIDE,
        _sum(lambda g: g.parked),
    ),
    Figure(
        "unsafe_rooms",
        "Rooms that have ended, but whose memory may not be reused yet.",
        SIDE,
        _sum(lambda g: g.unsafe_rooms),
    ),
    Figure(
        "unsafe_pages", "KV pages of this side that those rooms hold.", SIDE, _sum(lambda g: g.unsafe_pages)
    ),
    Figure(
        "forsaken_peers",
        "Lost peers that were taken for silent, unproven, after quarantine.grace.",
        SIDE,
        _sum(lambda g: g.forsaken),
    ),
    Figure(
        "quarantined_transfers",
        "Transfers that failed and whose bytes may still land.",
        SIDE,
        _sum(lambda g: g.quarantined),
    ),
    Figure(
        "staging_rings_in_doubt",
        "Staging rings of decode that are out of use, since lost peers may still write to them.",
        SIDE,
        _sum(lambda g: g.rings_in_doubt),
    ),
    Figure("descriptors", "Open file descriptors of this process by kind.", ("kind",), _descriptors),
    Figure("descriptors_limit", "The most that this process may have open (nofile).", (), _limit),
    Figure(
        "sockets",
        "TCP sockets of this process by whose they are and by state; many in close_wait are a leak.",
        ("owner", "state"),
        _sockets,
    ),
)
