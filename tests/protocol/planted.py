"""Faults that were in the managers once, or nearly were, put into the machine one by one.

Each takes something away from a class of :mod:`pdcore.protocol`; the simulation must notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from pdcore.model import KVPoll
from pdcore.protocol import machine, peers, room
from pdcore.protocol import peer as peer_
from pdcore.protocol.receive import dialled, receiving
from pdcore.protocol.send import answers, lives, meeting, send_room, sending
from pdcore.protocol.send.early import EarlyRequests
from pdcore.wire import Released

Plant = Callable[[pytest.MonkeyPatch], None]


def pages_are_free_while_somebody_may_write(patch: pytest.MonkeyPatch) -> None:
    def end(self: Any, room: Any, failure: Any) -> bool:
        if not self._turn.end(room, failure):
            return False
        room.writers = set()
        self._look_for_silence(room)
        return True

    patch.setattr(receiving.Receiving, "_end", end)


def an_abort_is_answered_before_the_last_write_is_drained(patch: pytest.MonkeyPatch) -> None:
    right = meeting.Meeting.aborted

    def aborted(self: Any, peer: Any, abort: Any) -> None:
        right(self, peer, abort)
        self._turn.post(peer.route, Released(abort.room, abort.generation))

    patch.setattr(meeting.Meeting, "aborted", aborted)


def a_failure_says_that_all_is_drained(patch: pytest.MonkeyPatch) -> None:
    right = answers.Answers.refuse

    def refuse(self: Any, *args: Any, drained: bool = True) -> None:
        right(self, *args, drained=True)

    patch.setattr(answers.Answers, "refuse", refuse)


def a_room_succeeds_with_its_first_delivery(patch: pytest.MonkeyPatch) -> None:
    def done(self: Any) -> bool:
        return self.supplied and not self.waiting and self.unready is None and self.complete

    patch.setattr(send_room.SendRoom, "done", property(done))


def a_room_succeeds_while_a_chunk_waits_for_its_source(patch: pytest.MonkeyPatch) -> None:
    done = property(lambda self: self.supplied and not self.outstanding and self.complete)
    patch.setattr(send_room.SendRoom, "done", done)


def a_message_of_an_earlier_life_is_taken(patch: pytest.MonkeyPatch) -> None:
    right = receiving.Receiving.take

    def take(self: Any, peer: Any, message: Any) -> None:
        present = self.present.get(message.room)
        life = message.generation if present is None else present.generation
        right(self, peer, attrs.evolve(message, generation=life))

    patch.setattr(receiving.Receiving, "take", take)


def a_promise_to_an_earlier_life_counts(patch: pytest.MonkeyPatch) -> None:
    def is_promised_to(self: Any, route: Any, _generation: Any) -> bool:
        return any(there == route for there, *_ in self.promised.values())

    patch.setattr(lives.Life, "is_promised_to", is_promised_to)


def nobody_is_told_when_the_last_write_is_drained(patch: pytest.MonkeyPatch) -> None:
    right = sending.Sending._settle

    def settle(self: Any, room: Any) -> None:
        if room.status is not KVPoll.FAILED:
            right(self, room)
        elif not room.outstanding:
            self._turn.silence(room)
            self._forget_if_cleared(room)

    patch.setattr(sending.Sending, "_settle", settle)


def a_deadline_ends_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(room.Turn, "overdue", lambda self: [])


def a_lost_peer_keeps_its_rooms(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(receiving.Receiving, "peer_lost", lambda self, peer, failure: 0)


def a_lost_writer_counts_as_silent(patch: pytest.MonkeyPatch) -> None:
    right = receiving.Receiving.peer_lost

    def peer_lost(self: Any, peer: Any, failure: Any) -> Any:
        affected = right(self, peer, failure)
        self.silent(peer.identity)
        return affected

    patch.setattr(receiving.Receiving, "peer_lost", peer_lost)


def a_peer_that_pairs_anew_keeps_what_it_had(patch: pytest.MonkeyPatch) -> None:
    right = peers.Peers.asked_to_pair

    def asked_to_pair(self: Any, route: Any, request: Any) -> None:
        old = self.by_route.pop(route, None)
        if old is None or old.state is not peer_.PairingState.CONNECTING:
            right(self, route, request)

    patch.setattr(peers.Peers, "asked_to_pair", asked_to_pair)


def an_early_request_gives_way_in_silence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EarlyRequests, "put", lambda self, destination: [])


def nobody_compares_what_both_sides_ask_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(send_room.SendRoom, "disagreement", lambda self, page_size: None)


def a_closed_side_opens_rooms(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine.Machine, "_require_open", lambda self, room: None)


def a_lost_abort_is_not_said_again(patch: pytest.MonkeyPatch) -> None:
    right = receiving.Receiving.tick

    def tick(self: Any) -> None:
        self._remind_at = self._turn.now + 1e9
        right(self)

    patch.setattr(receiving.Receiving, "tick", tick)


def who_has_a_room_open_is_not_told_of_its_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(answers.Answers, "tell_guests", lambda self, room: None)


def who_is_not_paired_yet_is_not_told_that_decode_gave_up(patch: pytest.MonkeyPatch) -> None:
    right = peers.Peers.part

    def part(self: Any, group: Any, room: Any, failure: Any, told: Any = None) -> None:
        if group.ready:
            right(self, group, room, failure, told)

    patch.setattr(peers.Peers, "part", part)


def who_runs_in_the_place_of_a_lost_rank_is_not_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dialled.DialledRanks, "owe", lambda self, *what: None)


def a_room_that_was_cleared_is_not_remembered(patch: pytest.MonkeyPatch) -> None:
    def cleared(self: Any, life: Any, now: Any) -> None:
        life.cleared = True

    patch.setattr(lives.Lives, "cleared", cleared)


def what_decode_gave_up_is_not_remembered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lives.Lives, "given_up", lambda self, *args, **kwargs: None)


def the_first_of_several_senders_ends_a_room(patch: pytest.MonkeyPatch) -> None:
    right = receiving.Receiving._on_status

    def on_status(self: Any, room: Any, peer: Any, message: Any) -> None:
        if message.status is KVPoll.SUCCESS:
            room.responded |= room.senders
        right(self, room, peer, message)

    patch.setattr(receiving.Receiving, "_on_status", on_status)


def the_first_of_several_that_ask_gets_the_room(patch: pytest.MonkeyPatch) -> None:
    right = meeting.Meeting._accept

    def accept(self: Any, room: Any, destination: Any) -> None:
        peer = destination.peer
        asking = peer.facts.asking
        peer.facts = attrs.evolve(peer.facts, asking=asking[:1])
        right(self, room, destination)
        peer.facts = attrs.evolve(peer.facts, asking=asking)

    patch.setattr(meeting.Meeting, "_accept", accept)


def chunks_leave_a_room_that_has_failed(patch: pytest.MonkeyPatch) -> None:
    def source_ready(self: Any, what: Any) -> None:
        room = self.rooms.get(what.generation)
        if room is None or room.unready is None:
            return
        chunk, room.unready = room.unready, None
        self._dispatch(room, chunk)
        self.go_on(room)

    right = sending.Sending.give_up

    def give_up(self: Any, room: Any, failure: Any) -> None:
        unready = room.unready
        right(self, room, failure)
        room.unready = unready

    patch.setattr(sending.Sending, "source_ready", source_ready)
    patch.setattr(sending.Sending, "give_up", give_up)


def who_waits_for_a_group_is_not_told_that_it_is_lost(patch: pytest.MonkeyPatch) -> None:
    def fail_group(self: Any, group: Any, failure: Any) -> None:
        group.failure = group.failure or failure

    patch.setattr(peers.Peers, "fail_group", fail_group)


def what_is_in_doubt_is_never_settled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(meeting.Meeting, "_put_off", lambda self, action: None)


def pages_are_lost_when_a_peer_was_away_for_a_moment(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dialled.DialledRanks, "paired_with", lambda self, identity: None)


def a_request_for_a_room_that_has_ended_is_kept(patch: pytest.MonkeyPatch) -> None:
    def awaits(self: Any, word: Any, now: Any) -> bool:
        return False

    patch.setattr(lives.Life, "awaits", awaits)


PLANTED: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (
        pages_are_free_while_somebody_may_write,
        an_abort_is_answered_before_the_last_write_is_drained,
        a_failure_says_that_all_is_drained,
        a_room_succeeds_with_its_first_delivery,
        a_room_succeeds_while_a_chunk_waits_for_its_source,
        a_message_of_an_earlier_life_is_taken,
        a_promise_to_an_earlier_life_counts,
        nobody_is_told_when_the_last_write_is_drained,
        a_deadline_ends_nothing,
        a_lost_peer_keeps_its_rooms,
        a_lost_writer_counts_as_silent,
        a_peer_that_pairs_anew_keeps_what_it_had,
        an_early_request_gives_way_in_silence,
        nobody_compares_what_both_sides_ask_for,
        a_closed_side_opens_rooms,
        a_lost_abort_is_not_said_again,
        who_has_a_room_open_is_not_told_of_its_end,
        who_is_not_paired_yet_is_not_told_that_decode_gave_up,
        who_runs_in_the_place_of_a_lost_rank_is_not_told,
        a_room_that_was_cleared_is_not_remembered,
        what_decode_gave_up_is_not_remembered,
        the_first_of_several_senders_ends_a_room,
        the_first_of_several_that_ask_gets_the_room,
        chunks_leave_a_room_that_has_failed,
        who_waits_for_a_group_is_not_told_that_it_is_lost,
        what_is_in_doubt_is_never_settled,
        pages_are_lost_when_a_peer_was_away_for_a_moment,
        a_request_for_a_room_that_has_ended_is_kept,
    )
}

SEEDS = {
    "a_lost_writer_counts_as_silent": 480,
    "a_peer_that_pairs_anew_keeps_what_it_had": 37,
    "who_runs_in_the_place_of_a_lost_rank_is_not_told": 300,
    "who_has_a_room_open_is_not_told_of_its_end": 54,
    "who_waits_for_a_group_is_not_told_that_it_is_lost": 47,
}
"""Of worlds of 60 requests that find what takes longest; from seed 1 on, 30,000 requests find each."""
