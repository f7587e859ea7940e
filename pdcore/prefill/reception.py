"""Where what decode asks for meets the rooms that prefill has opened, has yet to open, or has ended."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from pdcore.config import MAX_SECONDS
from pdcore.errors import KVTransferError
from pdcore.model import Deadline
from pdcore.prefill import answers
from pdcore.prefill.link import Destination, PeerLink
from pdcore.prefill.parking import Parking
from pdcore.prefill.sender import KVSender
from pdcore.prefill.senders import Senders
from pdcore.wire import Abort, Message, Released, RequestMetadata, Route

__all__ = ["Reception"]


class Reception:
    """Takes requests and aborts of paired decode ranks, on the control thread, and rooms as they open.

    ``tell`` posts to a destination, ``counts`` are the channel's, ``rank`` is this prefill rank. The lock
    sees to it that no request is parked once its room has taken what is parked.
    """

    def __init__(
        self,
        senders: Senders,
        parking: Parking,
        rank: int,
        tell: Callable[[Destination, Message], None],
        counts: Counter[str],
    ) -> None:
        self._lock = threading.Lock()
        self._senders, self._parking = senders, parking
        self._rank, self._tell, self._counts = rank, tell, counts

    def opened(self, sender: KVSender) -> None:
        """Take a room that was opened, and what came for it before."""
        with self._lock:
            self._senders.add(sender)
        for parked in self._parking.take(sender.room):
            self._offer(sender, parked)

    def asked(self, link: PeerLink, wanted: RequestMetadata) -> None:
        """Take a request."""
        if not wanted.remaining > 0:
            self._counts["stale"] += 1
            return
        destination = Destination(link, wanted, Deadline.after(min(wanted.remaining, MAX_SECONDS)))
        with self._lock:
            sender = self._senders.get(wanted.room)
            if sender is not None and sender.outlived_by(destination):
                sender = None  # the next life of its id, which prefill has not opened yet
            evicted = [] if sender else self._parking.put(destination)
        for other, failure in evicted:
            self._refuse(other, failure)
        if sender is not None:
            self._offer(sender, destination)

    def aborted(self, route: Route, abort: Abort) -> Released | None:
        """Take an abort; return the answer, None if the last write of the room will bring it."""
        self._parking.drop(lambda d: d.is_for(route, abort.room, abort.generation))
        for sender in self._senders.of(abort.room):
            if sender.promised_to(route, abort.generation):
                sender.give_up(abort.failure.error())
                if not sender.drained:
                    return None
        return Released(abort.room, abort.generation)

    def lost(self, link: PeerLink, why: str) -> int:
        """Fail what was promised to a lost peer; return how many rooms that were."""
        affected = self._senders.using(link)
        self._parking.drop(lambda d: d.link is link)
        for sender in affected:
            sender.give_up(link.loss(sender.room, why))
        return len(affected)

    def sweep(self) -> None:
        """Forget requests whose deadline passed, and cleared rooms that have drained."""
        self._parking.drop(lambda d: d.deadline.expired)
        self._senders.sweep()

    def _offer(self, sender: KVSender, destination: Destination) -> None:
        """Have a room take a request, or tell decode how the room has ended."""
        if sender.accept(destination):
            return
        ended = sender.failure()
        if ended is not None and not sender.promised_to(
            destination.link.route, destination.wanted.generation
        ):
            self._refuse(destination, ended)
        else:
            self._counts["stale"] += 1

    def _refuse(self, destination: Destination, failure: KVTransferError) -> None:
        self._tell(destination, answers.failed(destination.wanted, self._rank, failure, drained=True))
