"""What happened to one side, bounded: enough to reach its state again in a fresh machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import attrs

from pdcore.errors import Misfit
from pdcore.model import Generation, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.plan import IndexArray
from pdcore.protocol import stimuli as s
from pdcore.protocol.chunk import generation_of
from pdcore.protocol.history.picture import Picture
from pdcore.protocol.machine import Settings
from pdcore.protocol.peer import Facts
from pdcore.wire import AuxRow, Bye, Digests, Heartbeat, Packed, PairReply, PairRequest, RequestMetadata

__all__ = ["Answer", "LoggedStimulus", "Recording", "StimulusLog", "history"]

MOST = 4_096
"""Entries of each kind that are kept."""
MOST_BYTES = 64 * 2**20
"""Bytes that the pages, rows, digests and entries in them may have."""

OF_PEERS = frozenset(
    {
        s.AllSilent,
        s.Close,
        s.GroupFailed,
        s.GroupFound,
        s.PeerConnected,
        s.PeerFailed,
        s.PeerGone,
        s.Reconnected,
        PairRequest,
        PairReply,
        Bye,
    }
)
"""What tells who is there, messages among it: kept apart from what rooms do, which is more."""
QUIET = frozenset({s.Tick, Heartbeat})
"""What changes nothing as a rule."""

Answer = Facts | PairReply | tuple[Misfit, ...]
"""What the machine was told as it asked what a peer means to this side."""

P = TypeVar("P")
A = TypeVar("A", bound=Answer)


class LoggedStimulus(NamedTuple):
    """The ``number``-th stimulus of a side and its moment; ``answers`` are those that it asked for."""

    number: int
    moment: float
    stimulus: s.Stimulus
    answers: tuple[Answer, ...] = ()


@attrs.frozen(eq=False)
class Recording:
    """What a log held at a moment, and the state of its machine then.

    ``missing``: how many stimuli before or between the entries were dropped; without them, rooms are reached
    as they were if all that was ever said of their ids is there. It holds what requests are made of: page
    numbers, and the aux rows that went by message.
    """

    ours: PeerDescription
    settings: Settings
    entries: tuple[LoggedStimulus, ...]
    missing: int
    state: Picture


class StimulusLog:
    """The last stimuli of one side. Whoever feeds the machine notes them, one thread at a time.

    Kept are the last ``most`` of what rooms did and their messages, as many of what peers did, and of those
    ticks and heartbeats that changed nothing; of the first, no more than ``most_bytes`` of what may be long.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes, self._bytes, self._number = most, most_bytes, 0, 0
        self._rooms: deque[tuple[int, float, s.Stimulus, int]] = deque()
        """Number, moment, stimulus, and the bytes of what can be long in it: each request notes six."""
        self._peers: deque[LoggedStimulus] = deque(maxlen=most)
        self._quiet: deque[LoggedStimulus] = deque(maxlen=most)
        self._answers: list[Answer] = []

    def answering(self, question: Callable[[P], A]) -> Callable[[P], A]:
        """Return a question that the machine may ask of what surrounds it, such that its answer is noted."""

        def asked(what: P) -> A:
            answer = question(what)
            self._answers.append(answer)
            return answer

        return asked

    def note(self, stimulus: s.Stimulus, moment: float, *, acted: bool) -> None:
        """Note what the machine has handled; ``acted``: it wanted something done, or refused it."""
        self._number += 1
        what = stimulus.message if isinstance(stimulus, s.Heard) else stimulus
        kind = type(what)
        if kind in OF_PEERS:
            self._peers.append(LoggedStimulus(self._number, moment, stimulus, tuple(self._answers)))
            self._answers.clear()
        elif not acted and kind in QUIET:
            self._quiet.append(LoggedStimulus(self._number, moment, stimulus))
        else:
            rooms, measure = self._rooms, _LONG.get(kind)
            if len(rooms) == self._most:
                self._bytes -= rooms.popleft()[3]
            size = 0 if measure is None else measure(what)
            rooms.append((self._number, moment, stimulus, size))
            if size:
                self._weigh(size)

    def entries(self) -> tuple[LoggedStimulus, ...]:
        """Return what is kept, the oldest first."""
        of_rooms = (LoggedStimulus(*entry[:3]) for entry in self._rooms)
        return tuple(sorted((*of_rooms, *self._peers, *self._quiet)))

    def recording(self, ours: PeerDescription, settings: Settings, state: Picture) -> Recording:
        """Return all that is kept, with the state that the machine has reached."""
        entries = self.entries()
        return Recording(ours, settings, entries, self._number - len(entries), state)

    def _weigh(self, size: int) -> None:
        """Count the bytes of the newest, and drop the oldest for as long as there are too many."""
        self._bytes += size
        while self._bytes > self._most_bytes and len(self._rooms) > 1:
            self._bytes -= self._rooms.popleft()[3]


def history(entries: Iterable[LoggedStimulus], room: RoomId) -> list[LoggedStimulus]:
    """Return what happened to a room: its scheduler's calls, messages about it, and the ends of its work."""
    lives: set[Generation] = set()
    found = []
    for entry in entries:
        stimulus = entry.stimulus
        if isinstance(stimulus, s.Heard):
            about = getattr(stimulus.message, "room", None) == room
        elif isinstance(stimulus, s.OpenSend | s.OpenReceive):
            about = stimulus.room == room
            if about:
                lives.add(stimulus.generation)
        elif isinstance(stimulus, s.DeliveryEnded | s.DeliveryDrained | s.SlotWritten):
            about = generation_of(stimulus.delivery) in lives
        else:
            about = getattr(stimulus, "generation", None) in lives
        if about:
            found.append(entry)
    return found


def _of_digests(*several: Digests) -> int:
    return sum(_of_arrays(d.regions, d.offsets, d.lengths, d.digests) for d in several)


def _of_packed(packed: Packed) -> int:
    return _of_arrays(packed.regions, packed.starts, packed.offsets, packed.lengths)


def _of_arrays(*arrays: IndexArray) -> int:
    size = 0
    for array in arrays:  # a sum() takes twice as long, and most are of one
        size += array.nbytes
    return size


_LONG: dict[type, Callable[[Any], int]] = {
    s.Supply: lambda what: _of_arrays(what.pages, *what.state_indices),
    s.Place: lambda what: _of_arrays(what.wanted.pages, *what.wanted.state_indices),
    s.RowRead: lambda what: len(what.row),
    s.Examined: lambda what: _of_digests(*(digests for _, digests in what.digests)),
    s.Compared: lambda what: _of_digests(what.digests),
    RequestMetadata: lambda what: _of_arrays(what.pages, *what.state_indices),
    AuxRow: lambda what: len(what.row),
    Digests: _of_digests,
    s.SlotWritten: lambda what: _of_packed(what.packed),
    s.BytesUnpacked: lambda what: _of_packed(what.packed),
    Packed: _of_packed,
}
