"""Faults that staging could have, or had, put into the machine one by one: the simulation must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pdcore.protocol.actions import Unpack
from pdcore.protocol.receive import receive_room, unpacking
from pdcore.protocol.send import handed

Plant = Callable[[pytest.MonkeyPatch], None]


def a_room_succeeds_before_its_bytes_are_in_their_pages(patch: pytest.MonkeyPatch) -> None:
    arrived = property(lambda self: self.asking and self.responded >= self.senders)
    patch.setattr(receive_room.ReceiveRoom, "arrived", arrived)


def pages_are_free_while_bytes_are_taken_out_of_slots(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        receive_room.ReceiveRoom, "at_rest", property(lambda self: not self.writers and not self.rows)
    )


def a_filled_slot_is_told_of_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handed.HandedSlots, "tick", lambda _: None)


def what_is_said_again_is_taken_again(patch: pytest.MonkeyPatch) -> None:
    def begin(self: Any, room: Any, peer: Any, packed: Any) -> None:
        if room.over or peer.ring is None:
            self.decline(peer, packed)
            return
        room.unpacking.add((peer.identity, packed.number))
        self._turn.do(Unpack(room.generation, peer.identity, peer.ring, packed))

    patch.setattr(unpacking.Unpacking, "begin", begin)


def a_slot_of_a_room_that_has_ended_is_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unpacking.Unpacking, "decline", lambda *_: None)


PLANTED: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (
        a_room_succeeds_before_its_bytes_are_in_their_pages,
        pages_are_free_while_bytes_are_taken_out_of_slots,
        a_filled_slot_is_told_of_once,
        what_is_said_again_is_taken_again,
        a_slot_of_a_room_that_has_ended_is_kept,
    )
}
