"""What a worker does: rooms of pdcore for what the scheduler wants, and what became of them.

One thread calls it, that of vLLM's worker. A request whose room cannot be opened has failed like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import attrs
import numpy as np
import numpy.typing as npt

from pdcore import Deadline, DecodeManager, FailureCode, KVPoll, PrefillManager, RoomId
from pdcore.handle import RoomHandle
from pdcore_vllm.guard import contained, log, one_line
from pdcore_vllm.metrics import Transfers
from pdcore_vllm.scheduler import Decline, Load, Report, Send, Work

__all__ = ["Ended", "Worker"]

NAP, LONG_NAP = 0.002, 0.01
"""Seconds that a step without computation waits for a room to end, while one is young and later: so long may
a request that arrives meanwhile wait, and so often does an idle engine look."""
YOUNG = 1.0
WANTED = (FailureCode.ABORTED, FailureCode.DECLINED)
"""Codes of failures that somebody asked for."""


@attrs.define
class Ended:
    """Whose loads have ended since the last look; who ``failed`` is in ``received`` as well."""

    received: set[str] = attrs.field(factory=set)
    failed: set[str] = attrs.field(factory=set)


@attrs.define(eq=False)
class _Room:
    """The room of a request: ``handle`` is None if it could not be opened."""

    blocks: tuple[int, ...]
    sends: bool
    handle: RoomHandle | None = None
    why: str = ""
    since: float = attrs.field(factory=time.monotonic)


class Worker:
    """The rooms of one rank, of a manager of either role.

    ``pages`` translates vLLM's block numbers into pdcore's pages; a room has ``seconds`` to succeed.
    """

    def __init__(
        self,
        manager: PrefillManager | DecodeManager,
        pages: Callable[[tuple[int, ...]], npt.NDArray[np.int64]],
        seconds: float,
    ) -> None:
        self.manager = manager
        self.transfers = Transfers()
        self._pages = pages
        self._seconds = seconds
        self._rooms: dict[str, _Room] = {}
        self._unsafe: dict[str, RoomHandle] = {}
        self._report = Report()

    def begin(self, work: Work) -> None:
        """Open the rooms of a step, and give up those that nobody wants."""
        for send in work.sends:
            self._open(send.request, _Room(send.blocks, sends=True), partial(self._send, send))
        for load in work.loads:
            self._open(load.request, _Room(load.blocks, sends=False), partial(self._load, load))
        for decline in work.declines:
            self._decline(decline)
        for request in work.aborts:
            self._abort(request)

    def ended(self, *, idle: bool) -> Ended:
        """Return whose transfers have ended; a step that is ``idle`` waits a little for one."""
        if idle and self._rooms and not any(_is_over(room) for room in self._rooms.values()):
            young = any(time.monotonic() - room.since < YOUNG for room in self._rooms.values())
            self.manager.finished(Deadline.after(NAP if young else LONG_NAP))
        ended = Ended()
        for request in list(self._rooms):
            self._settle(request, ended)
        for request in list(self._unsafe):
            self._release(request)
        return ended

    def report(self) -> Report | None:
        """Return what the scheduler must know beside that, once."""
        report, self._report = self._report, Report()
        return report if report else None

    def close(self) -> None:
        """End all rooms and the manager."""
        self.manager.close()

    # --- how rooms begin -------------------------------------------------------------------------

    def _open(self, request: str, room: _Room, begin: Callable[[_Room], None]) -> None:
        self._rooms[request] = room
        try:
            begin(room)
        except Exception as error:
            room.why = one_line(error)

    def _send(self, send: Send, room: _Room) -> None:
        assert isinstance(self.manager, PrefillManager)
        pages, deadline = self._pages(send.blocks), Deadline.after(self._seconds)
        room.handle = sender = self.manager.sender(RoomId(send.room), deadline, may_raise=False)
        sender.init(len(pages))
        sender.send(pages)

    def _load(self, load: Load, room: _Room) -> None:
        assert isinstance(self.manager, DecodeManager)
        pages, deadline = self._pages(load.blocks), Deadline.after(self._seconds)
        room.handle = receiver = self.manager.receiver(
            load.bootstrap, RoomId(load.room), deadline, may_raise=False
        )
        receiver.init()
        receiver.send_metadata(pages, decode_prefix_len=load.prefix)

    @contained(lambda: None)
    def _decline(self, decline: Decline) -> None:
        assert isinstance(self.manager, DecodeManager)
        self.manager.decline(decline.bootstrap, RoomId(decline.room), decline.reason)

    @contained(lambda: None)
    def _abort(self, request: str) -> None:
        room = self._rooms.get(request)
        if room is not None and room.handle is not None:
            room.handle.abort()

    # --- how they end ----------------------------------------------------------------------------

    def _settle(self, request: str, ended: Ended) -> None:
        room = self._rooms[request]
        try:
            if not _is_over(room):
                return
            failed = room.handle is None or room.handle.poll() is KVPoll.FAILED
            safe = room.handle is None or room.handle.release_safe()
            self._note(request, room)
            if safe and room.handle is not None:
                room.handle.clear()
        except Exception as error:  # a room that cannot tell has failed, and its blocks are never used again
            log.exception("the room of request %s cannot tell how it stands", request)
            failed, safe, room.why = True, False, one_line(error)
        del self._rooms[request]
        if not room.sends:
            ended.received.add(request)
            if failed:
                ended.failed.add(request)
                self._tell(Report(failures={request: room.why}))
            if not safe:
                self._tell(Report(unsafe={request: (room.blocks, 1)}))
        elif safe:
            self._tell(Report(safe={request: 1}))
        if not safe and room.handle is not None:
            self._unsafe[request] = room.handle

    def _tell(self, more: Report) -> None:
        self._report = self._report.merged(more)

    def _note(self, request: str, room: _Room) -> None:
        """Count a room that is over, and say why it failed if it did."""
        handle, failure = room.handle, None
        if handle is not None:
            failure = handle.failure()
            room.why = "" if failure is None else one_line(failure)
        code = failure.code if failure is not None else None
        outcome = code.value if code is not None else "success" if handle is not None else "defect"
        self.transfers.note(outcome, handle.metric() if handle is not None else None)
        if outcome != "success":
            say = log.debug if code in WANTED else log.warning
            say("the KV cache of request %s did not come over: %s", request, room.why)

    @contained(lambda: None)
    def _release(self, request: str) -> None:
        handle = self._unsafe[request]
        if handle.release_safe():
            del self._unsafe[request]
            self._tell(Report(safe={request: 1}))
            handle.clear()


def _is_over(room: _Room) -> bool:
    return room.handle is None or room.handle.poll().terminal
