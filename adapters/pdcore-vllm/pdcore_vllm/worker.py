"""What a worker does: rooms of pdcore for what the scheduler wants, and what became of them.

One thread calls it, that of vLLM's worker. A request whose room cannot be opened has failed like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pdcore import Deadline, DecodeManager, FailureCode, KVReceiver, KVSender, PrefillManager, RoomId
from pdcore.errors import one_line
from pdcore.rooms.containment import contained, room_fails
from pdcore_vllm.log import log
from pdcore_vllm.scheduler import Key, Report, Room, Work

__all__ = ["Worker"]

NAP = 0.002
"""Seconds that a step without computation waits for a room to end: so long may a new request wait."""
WANTED = (FailureCode.ABORTED, FailureCode.DECLINED)
"""Codes of failures that somebody asked for."""


class Worker:
    """The rooms of one rank, of a manager of either role.

    ``pages`` translates vLLM's block numbers into pdcore's pages; a room has ``seconds`` to succeed. A
    request that a defect of ours kept from having a room has a text instead: why.
    """

    def __init__(
        self,
        manager: PrefillManager | DecodeManager,
        pages: Callable[[tuple[int, ...]], npt.NDArray[np.int64]],
        seconds: float,
    ) -> None:
        self.manager = manager
        self._pages, self._seconds = pages, seconds
        self._rooms: dict[Key, KVSender | KVReceiver | str] = {}
        self._unsafe: dict[Key, KVSender | KVReceiver] = {}
        self._report, self._figures = Report(), Counter[str]()

    def begin(self, work: Work) -> None:
        """Open the rooms of a step, and give up those that nobody wants."""
        for room in work.rooms:
            self._rooms[room.key] = self._opened(room)
        for room, reason in work.declines:
            self._decline(room, reason)
        for handle in map(self._rooms.get, work.aborts):
            if isinstance(handle, KVReceiver):
                with room_fails(handle):
                    handle.abort()

    def ended(self, *, idle: bool) -> tuple[set[str], set[str]]:
        """Return whose loads have ended since the last look, and whose of them failed; a step that is
        ``idle`` waits a little for one."""
        if idle and self._rooms:
            self.manager.finished(Deadline.after(NAP))
        received, failed = set[str](), set[str]()
        for key in list(self._rooms):
            why, request = self._settled(key), key[0]
            if why is not None and isinstance(self.manager, DecodeManager):
                received.add(request)
                if why:
                    failed.add(request)
                    self._report.failures[request] = why
        for key in list(self._unsafe):
            self._release(key)
        return received, failed

    def report(self) -> Report:
        """Return what the scheduler must know beside that, once."""
        report, self._report = self._report, Report()
        return report

    def figures(self) -> dict[str, int]:
        """Return, once, how many rooms have ended how (``success``, or pdcore's code of the failure), and the
        ``microseconds`` and ``bytes`` of the transfers that succeeded."""
        figures, self._figures = self._figures, Counter()
        return dict(figures)

    def _opened(self, room: Room) -> KVSender | KVReceiver | str:
        number, deadline, manager = RoomId(room.room), Deadline.after(self._seconds), self.manager
        handle: KVSender | KVReceiver
        try:
            if isinstance(manager, PrefillManager):
                handle = manager.sender(number, deadline, may_raise=False)
            else:
                handle = manager.receiver(room.bootstrap, number, deadline, may_raise=False)
        except Exception as error:
            return one_line(error)
        with room_fails(handle):
            pages = self._pages(room.blocks)
            if isinstance(handle, KVSender):
                handle.init(len(pages))
                handle.send(pages)
            else:
                handle.init()
                handle.send_metadata(pages, decode_prefix_len=room.prefix)
        return handle

    @contained(lambda: None)
    def _decline(self, room: Room, reason: str) -> None:
        if isinstance(self.manager, DecodeManager):
            self.manager.decline(room.bootstrap, RoomId(room.room), reason)

    def _settled(self, key: Key) -> str | None:
        """Return why a request's room failed, or "" if it succeeded; None while it is open."""
        handle, safe = self._rooms[key], True
        try:
            if not (isinstance(handle, str) or handle.poll().terminal):
                return None
            why = handle if isinstance(handle, str) else self._noted(key[0], handle)
            safe = isinstance(handle, str) or handle.release_safe()
            if safe and not isinstance(handle, str):
                handle.clear()
        except Exception as error:  # a room that cannot tell has failed, and its blocks are never used again
            log.exception("the room of request %s cannot tell how it stands", key[0])
            why, safe = one_line(error), False
        del self._rooms[key]
        loads = isinstance(self.manager, DecodeManager)
        if safe is not loads:  # vLLM frees the blocks of a load that ended; those of a send are held anyhow
            (self._report.safe if safe else self._report.unsafe)[key] += 1
        if not safe and not isinstance(handle, str):
            self._unsafe[key] = handle
        return why

    def _noted(self, request: str, handle: KVSender | KVReceiver) -> str:
        """Count a room that is over; return and log why it failed if it did."""
        failure, metric = handle.failure(), handle.metric()
        if failure is None:
            transfer = {"microseconds": int(1e6 * metric.transfer), "bytes": metric.nbytes}
            self._figures.update(success=1, **transfer)
            return ""
        self._figures[failure.code.value] += 1
        say = log.debug if failure.code in WANTED else log.warning
        say("the KV cache of request %s did not come over: %s", request, one_line(failure))
        return one_line(failure)

    @contained(lambda: None)
    def _release(self, key: Key) -> None:
        handle = self._unsafe[key]
        if handle.release_safe():
            del self._unsafe[key]
            self._report.safe[key] += 1
            handle.clear()
