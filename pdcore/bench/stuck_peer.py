"""What a black-holed peer costs the healthy one beside it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import msgspec

from pdcore.bench.load import BenchError, pages_of
from pdcore.bench.messages import Load
from pdcore.bench.near import AUX, BenchPair, FarSide, another
from pdcore.model import Deadline, KVPoll, Role, RoomId

__all__ = ["StuckPeer", "measure_stuck_peer"]

HELD = 16
"""Requests that the stopped peer has asked for, and that are sent to it while it is stopped."""
SECONDS = 30.0


@attrs.frozen
class StuckPeer:
    """Tiny requests per second of a healthy decode worker: alone, and beside one that is stopped (SIGSTOP)
    with requests under way. ``ratio`` is the median over the rounds of the second over the first."""

    alone: float
    beside: float
    ratio: float

    def __str__(self) -> str:
        return f"{self.beside:,.0f} requests/s, alone {self.alone:,.0f}, ratio {self.ratio:.3f}"


def measure_stuck_peer(pair: BenchPair, load: Load, rounds: int) -> StuckPeer:
    """Serve a load alone and beside a stopped peer, in turns; the first turn is not counted.

    Raises:
        ChildError: the far side did not come so far.
        PDCoreError: this side did not.
    """
    alone, beside = [], []
    numbers = iter(range(load.first_room, load.first_room + 3 * (rounds + 1) * load.requests, load.requests))
    with another(pair) as stranger:
        for _ in range(rounds + 1):
            alone.append(_rate(pair, msgspec.structs.replace(load, first_room=next(numbers))))
            held = Load(next(numbers), HELD, HELD, load.pages, load.scattered)
            stranger.tell(held)
            with _paused(pair, held, stranger):
                beside.append(_rate(pair, msgspec.structs.replace(load, first_room=next(numbers))))
            stranger.answer(held, Deadline.after(SECONDS))
    return StuckPeer(
        statistics.median(alone[1:]),
        statistics.median(beside[1:]),
        statistics.median(b / a for a, b in zip(alone[1:], beside[1:], strict=True)),
    )


def _rate(pair: BenchPair, load: Load) -> float:
    pair.far_serves(load)
    pair.serve(load)
    return load.requests / pair.far_served(load).wall


@contextmanager
def _paused(pair: BenchPair, held: Load, peer: FarSide) -> Iterator[None]:
    """Pause a process whose requests this side has met, and send them; let it go on in the end."""
    rooms = [RoomId(held.first_room + number) for number in range(held.requests)]
    slots = range(pair.settings.slots - held.requests, pair.settings.slots)  # the healthy ones use the others
    senders = [pair.manager.sender(room) for room in rooms]
    for sender, room, slot in zip(senders, rooms, slots, strict=True):
        pair.aux.set(slot, room, AUX)
        sender.init(held.pages, slot)
    deadline = Deadline.after(SECONDS)
    while any(sender.poll() is KVPoll.BOOTSTRAPPING for sender in senders) and not deadline.expired:
        pair.manager.finished(Deadline.after(0.01))
    peer.pause()
    try:
        for sender, pages in zip(senders, pages_of(held, Role.PREFILL, pair.settings.num_pages), strict=True):
            sender.send(pages)
        yield
    finally:
        peer.resume()
    for sender in senders:
        if sender.wait(Deadline.after(SECONDS)) is not KVPoll.SUCCESS:
            raise sender.failure() or BenchError(
                "a peer that went on got no answer", f"room {sender.room}", "look at what it logged"
            )
        sender.clear()
