"""What one room of decode says to the prefill ranks of its group, in an order in which no word overtakes."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from functools import partial

import attrs

from pdcore.decode import waits_for as awaited
from pdcore.decode.group import PrefillGroup
from pdcore.decode.host import ReceiverHost
from pdcore.decode.source import PrefillSource
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import PeerIdentity
from pdcore.rooms.status import Awaited, Room
from pdcore.wire import Abort, Failure, Inquiry, Opened, RequestMetadata, limit_of, overweight, too_large

__all__ = ["Dialogue"]

NEAR = 1.0
"""Seconds before its deadline in which a room asks prefill what it waits for."""


class Dialogue:
    """Each paired prefill rank hears of the room: that it is open, if it asks late; a request; its end.

    ``group`` and ``asking``, which turns true when the requests are about to go out, are guarded by the
    receiver's lock; ``posted`` turns true once they are. ``standing`` is what prefill ranks said that they
    wait for.
    """

    def __init__(self, host: ReceiverHost, record: Room, bootstrap: str) -> None:
        self.group: PrefillGroup | None = None
        self.asking = self.posted = False
        self._host, self._record, self._bootstrap = host, record, bootstrap
        self.standing: dict[PeerIdentity, str] = {}
        self._announced = self._inquired = False

    @property
    def members(self) -> Sequence[PrefillSource]:
        """The prefill ranks, once they are known."""
        return self.group.members if self.group is not None else ()

    def announce(self) -> None:
        """Let prefill know of a room that has not asked for long, so that it can tell if it ends it."""
        if self._announced or self.asking or self.group is None or not self.group.ready:
            return
        self._announced = True
        for member in self.members:
            self._host.say(member, Opened(self._record.room, self._record.generation, self._age()))

    def obstacle(self, wanted: RequestMetadata) -> KVTransferError | None:
        """Return why a request cannot be told to all members, or None."""
        ours = self._host.config.control.max_message_bytes
        limit = min((limit_of(ours, m.description) for m in self.members), default=ours)
        size = overweight(wanted, limit)
        if size is None:
            return None
        what = f"the list of {len(wanted.pages)} pages"
        return too_large(what, wanted.room, size, limit, FailureCode.PLAN)

    def ask(self, wanted: RequestMetadata) -> None:
        """Post the requests, and that the room was given up meanwhile, if it was."""
        wanted = attrs.evolve(wanted, remaining=self._record.deadline.remaining(), age=self._age())
        try:
            for member in self.members:
                self._host.request(member, wanted)
        finally:  # the engine may raise: then the room fails, and who was asked must hear of it
            # Who fails the room from here on abandons the request; who did before left it to us, or its word
            # would have overtaken the request.
            self.posted = True
            if (failure := self._record.failure) is not None:
                self.abandon(failure, self.members)

    def abandon(self, failure: KVTransferError, members: Sequence[PrefillSource]) -> None:
        """Tell prefill ranks that were asked that the room was given up."""
        abort = Abort(self._record.room, self._record.generation, Failure.of(failure))
        for member in members:
            self._host.abandon(member, abort)

    def part(self, failure: KVTransferError, told: PrefillSource | None = None) -> None:
        """Tell the prefill ranks, none of which was asked, each as soon as it is paired; ``told`` knows it.

        Those that cannot be found or reached are not told.
        """
        group = self.group or self._host.default_group(self._bootstrap, self._record.room)
        if group is not None:
            group.whenever_found(partial(self._part, group, failure, told))

    def inquire(self, answered: Container[PeerIdentity]) -> None:
        """Ask, once, those who have not answered what they wait for: the deadline is near."""
        if self._inquired or not self.posted or self._record.deadline.remaining() > NEAR:
            return
        self._inquired = True
        for member in self.members:
            if member.identity not in answered:
                self._host.say(member, Inquiry(self._record.room, self._record.generation))

    def met_again(self, source: PrefillSource, answered: Container[PeerIdentity]) -> None:
        """Ask how the room stands at a rank that is connected again, or tell it again that it is open."""
        self._announced = False
        if self.posted and source.identity not in answered:
            self._host.say(source, Inquiry(self._record.room, self._record.generation))

    def awaited(self, *, placed: bool, answered: set[PeerIdentity]) -> Awaited:
        """Return what the room waits for; ``placed`` once ``send_metadata`` was called."""
        group = self.group
        if group is None:
            return awaited.NO_INIT
        if not group.members:
            trouble = self._host.trouble(self._bootstrap)
            return awaited.of_bootstrap(str(group), self._bootstrap, trouble)
        if not group.ready:
            return awaited.of_pairing(group.members)
        if not placed:
            return awaited.NO_METADATA
        return awaited.of_prefill(group.senders, answered, self.standing)

    def remind(self, writers: Container[PeerIdentity]) -> None:
        """Ask those who may still write to this failed room again: the question or its answer may be lost."""
        failure = self._record.failure
        if failure is not None and self.posted:
            self.abandon(
                failure, [m for m in self.members if m.identity in writers and self._host.reaches(m)]
            )

    def _part(self, group: PrefillGroup, failure: KVTransferError, told: PrefillSource | None) -> None:
        for member in group.members:
            if member is not told:
                member.subscribe(_LastWord(self._host, self._record, failure, member), first=True)

    def _age(self) -> float:
        return time.monotonic() - self._record.opened_at


@attrs.frozen(eq=False)
class _LastWord:
    """Tells a prefill rank that a room was given up, once it is paired or has refused to be."""

    _host: ReceiverHost
    _room: Room
    _failure: KVTransferError
    _member: PrefillSource

    def paired(self) -> None:
        self._host.say(self._member, self._abort())

    def unpaired(self, failure: KVTransferError) -> bool:
        if self._member.refused:
            self._host.abandon(self._member, self._abort())
        return False

    def _abort(self) -> Abort:
        now, room = time.monotonic(), self._room
        age, ended = now - room.opened_at, now - (room.ended_at or now)
        failure = Failure.of(self._failure)
        return Abort(room.room, room.generation, failure, asked=False, age=age, ended=ended)
