"""A prefill and a decode manager in one process, random requests, and the invariants they must keep."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import attrs

from pdcore.bootstrap import BootstrapServer
from pdcore.config.records import Config, LivenessConfig, Timeouts, TransferConfig
from pdcore.decode import KVReceiver
from pdcore.errors import KVTransferError
from pdcore.model import Deadline, KVPoll, RoomId
from pdcore.prefill import KVSender
from pdcore.selection.select import select
from pdcore.testing.faults.managers import FaultyDecode, FaultyPrefill
from pdcore.testing.faults.memory import PAGES, SLOTS, WatchedMemory
from pdcore.testing.faults.request import BrokenInvariantError, WatchedRequest, WatchedSide
from pdcore.testing.faults.schedule import Schedule

__all__ = ["FaultyPair"]

DEADLINE, PAIRING = 0.8, 0.3
MARGIN = 60.0
"""Seconds that anything may take on a busy machine before it counts as never."""

GLANCE = 0.01
"""Seconds between two looks."""

LAST_ROOM = 1_000
"""From here on the pair numbers rooms itself."""

CONFIG = Config(
    timeouts=Timeouts(request=DEADLINE, pairing=PAIRING),  # of the bootstrap service none is a fault
    liveness=LivenessConfig(interval=0.05, max_failures=12),
)


class FaultyPair:
    """Does what it is told, and looks at the invariants after each step.

    ``packed``: all bytes go through slots.

    A room is used again only when both sides have cleared it, as a router does.
    """

    def __init__(self, schedule: Schedule, *, packed: bool = False) -> None:
        self.schedule = schedule
        self._config = attrs.evolve(CONFIG, transfer=TransferConfig(staging="always" if packed else "auto"))
        self.successes = 0
        self._backend = select("local")
        self._sender_memory, self._receiver_memory = WatchedMemory(), WatchedMemory()
        self._requests: dict[int, WatchedRequest] = {}
        self._lingering: list[WatchedSide] = []
        self._serial = 0
        with ExitStack() as stack:
            self._bootstrap = stack.enter_context(BootstrapServer()).address
            self.prefill = self._new_prefill()
            stack.callback(lambda: self.prefill.close())
            self.decode = self._new_decode()
            stack.callback(lambda: self.decode.close())
            self._stack = stack.pop_all()

    # --- operations ------------------------------------------------------------------------

    def open(self, room: int, pages: int, prefill_first: bool = True) -> None:
        """Open a room that is not in use, on both sides."""
        self._open(room, pages, (True, False) if prefill_first else (False, True))

    def open_one(self, room: int, pages: int, prefill: bool) -> None:
        """Open a room on one side only: the other one never comes."""
        self._open(room, pages, (prefill,))

    def send(self, room: int, pages: int) -> None:
        """Send the next pages of a request, at least those that are left."""
        request = self._requests.get(room)
        side = request.prefill if request is not None else None
        if request is None or side is None or side.cleared or request.complete:
            return
        assert isinstance(side.handle, KVSender)
        chunk = side.pages[request.sent : request.sent + pages]
        request.complete = request.sent + len(chunk) == request.count
        request.sent += len(chunk)
        side.handle.send(chunk)

    def abort(self, room: int, prefill: bool) -> None:
        """Abort one side of a request; decode declines every other one."""
        side = self._side(room, prefill)
        if side is None or side.cleared:
            return
        if isinstance(side.handle, KVReceiver) and self._requests[room].serial % 2:
            side.handle.decline("the schedule says so")
        else:
            side.handle.abort()

    def clear(self, room: int, prefill: bool) -> None:
        """Clear one side of a request, whether it has ended or not."""
        side = self._side(room, prefill)
        if side is not None and not side.cleared:
            self.look()
            side.handle.clear()
            side.look()
            side.cleared = True
            if all(s.cleared for s in self._requests[room].sides):
                self._lingering += self._requests.pop(room).sides

    def clear_ended(self) -> None:
        """Clear all that has ended, as a scheduler does."""
        ended = [
            (room, side is request.prefill)
            for room, request in self._requests.items()
            for side in request.sides
            if side.seen.terminal
        ]
        for room, prefill in ended:
            self.clear(room, prefill)

    def restart(self, prefill: bool) -> None:
        """Replace a side's manager by a new incarnation with the same memory."""
        manager = self.prefill if prefill else self.decode
        manager.close()
        for side in self._all_sides():
            mine = side.memory is (self._sender_memory if prefill else self._receiver_memory)
            if mine and not (side.handle.poll().terminal and side.handle.release_safe()):
                raise BrokenInvariantError(f"{side.name} outlived its manager")
        if prefill:
            self.prefill = self._new_prefill()
        else:
            self.decode = self._new_decode()

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        self.decode.finished(Deadline.after(seconds))

    # --- invariants ------------------------------------------------------------------------

    def look(self) -> None:
        """Look at every room and every free page.

        Raises:
            BrokenInvariantError: with what was found.
        """
        for request in self._requests.values():
            for side in request.sides:
                if side.look() and side is request.decode and side.seen is KVPoll.SUCCESS:
                    self._check_arrived(request, side)
        for side in self._all_sides():
            side.reclaim()
        for memory, name in ((self._sender_memory, "prefill"), (self._receiver_memory, "decode")):
            if touched := memory.touched():
                raise BrokenInvariantError(f"released pages {touched} of {name} were written to")
        self._lingering = [side for side in self._lingering if not side.released]

    def finish(self) -> None:
        """Heal, and prove that all ends: rooms by their deadline, pages when all is drained, records.

        Raises:
            BrokenInvariantError: with what did not end.
        """
        self.schedule.heal()
        try:
            self._until(
                lambda: [s for s in self._all_sides() if not s.handle.poll().terminal], "has not ended"
            )
            for room in list(self._requests):
                for side in (True, False):
                    self.clear(room, side)
            self._until(lambda: [s for s in self._all_sides() if not s.released], "was never released")
            self._prove_progress()
            self._until_empty()
        finally:
            self.close()
        self.look()
        for memory in (self._sender_memory, self._receiver_memory):
            if memory.free != (PAGES, SLOTS):
                raise BrokenInvariantError(f"pages and slots that are free: {memory.free}")

    def close(self) -> None:
        """Close both managers and the service."""
        self._stack.close()

    # --- inside ----------------------------------------------------------------------------

    def _new_prefill(self) -> FaultyPrefill:
        return FaultyPrefill(
            self.schedule, self._backend, self._sender_memory.pools, self._bootstrap, self._config
        )

    def _new_decode(self) -> FaultyDecode:
        return FaultyDecode(self.schedule, self._backend, self._receiver_memory.pools, self._config)

    def _open(self, room: int, pages: int, sides: Sequence[bool]) -> None:
        if room in self._requests:
            return
        self._serial += 1
        request = WatchedRequest(self._serial, pages)
        for prefill in sides:
            (self._open_prefill if prefill else self._open_decode)(room, request)
        if request.sides:
            self._requests[room] = request

    def _open_prefill(self, room: int, request: WatchedRequest) -> None:
        memory = self._sender_memory
        taken = memory.take(request.count)
        if taken is None:
            return
        sender = self.prefill.sender(RoomId(room))
        request.prefill = WatchedSide(sender, memory, *taken)
        memory.fill(request.serial, taken[0])
        memory.aux.set(taken[1], RoomId(room), {"serial": request.serial})
        sender.init(request.count - request.start, taken[1], start_page=request.start)

    def _open_decode(self, room: int, request: WatchedRequest) -> None:
        memory = self._receiver_memory
        taken = memory.take(request.count)
        if taken is None:
            return
        receiver = self.decode.receiver(self._bootstrap, RoomId(room))
        request.decode = WatchedSide(receiver, memory, *taken)
        receiver.init()
        (pages, slot), held = taken, request.held
        memory.fill(request.serial, pages[:held])
        receiver.send_metadata(pages[held:], slot, decode_prefix_len=held * memory.pools.layout.page_size)

    def _side(self, room: int, prefill: bool) -> WatchedSide | None:
        request = self._requests.get(room)
        return None if request is None else request.prefill if prefill else request.decode

    def _all_sides(self) -> list[WatchedSide]:
        return [*self._lingering, *(s for r in self._requests.values() for s in r.sides)]

    def _check_arrived(self, request: WatchedRequest, side: WatchedSide) -> None:
        if wrong := side.memory.wrong_pages(request.serial, side.pages):
            raise BrokenInvariantError(f"{side.name} succeeded with wrong bytes in pages {wrong}")
        try:
            found = int(side.memory.aux.get(side.slot, side.handle.room)["serial"])
        except KVTransferError as error:
            raise BrokenInvariantError(f"{side.name} succeeded without its aux row: {error}") from error
        if found != request.serial:
            raise BrokenInvariantError(
                f"{side.name} has the aux row of request {found}, not {request.serial}"
            )
        self.successes += 1

    def _until(self, left: Callable[[], Sequence[WatchedSide]], what: str) -> None:
        deadline, glance = Deadline.after(MARGIN), threading.Event()
        while sides := left():
            if deadline.expired:
                raise BrokenInvariantError(f"{sides[0].name} {what}, {len(sides)} in all")
            glance.wait(GLANCE)
            self.look()

    def _prove_progress(self) -> None:
        """Have a request succeed, at the latest after what is left of the faults has passed."""
        deadline, before = Deadline.after(MARGIN), self.successes
        for room in itertools.count(LAST_ROOM):
            self.open(room, 2)
            self.send(room, 2)
            self._until(
                lambda: [s for s in self._all_sides() if not s.handle.poll().terminal], "has not ended"
            )
            self.look()
            for side in (True, False):
                self.clear(room, side)
            if self.successes > before:
                return
            if deadline.expired:
                raise BrokenInvariantError("no request succeeds any more, although nothing goes wrong")

    def _until_empty(self) -> None:
        """Wait until the managers have forgotten every room."""
        self._until(lambda: self._lingering, "was never released")
        deadline, glance = Deadline.after(MARGIN), threading.Event()
        while records := self._records():
            if deadline.expired:
                raise BrokenInvariantError(f"records were left behind: {records}")
            glance.wait(GLANCE)

    def _records(self) -> list[str]:
        left = {
            "prefill rooms": self.prefill.busy(),
            "senders": len(self.prefill.driver.handles),
            "writes in quarantine": len(self.prefill.quarantine),
            "parked requests": len(self.prefill._machine.answers.early),
            "decode rooms": self.decode.busy(),
            "receivers": len(self.decode.driver.handles),
        }
        return [f"{count} {what}" for what, count in left.items() if count]
