"""Who is told, and once, that no byte of a delivery can move any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from wire_samples import ROOM

from pdcore.contract.regions import WriteBatch
from pdcore.errors import FailureCode, KVTransferError
from pdcore.events import Events, Node
from pdcore.model import Deadline, Generation, Incarnation, PeerIdentity, Role
from pdcore.plan import index_array
from pdcore.prefill.lanes.delivery import Delivery, all_drained
from pdcore.protocol.chunk import DeliveryId, TransferKVChunk, delivery_id

PEER = PeerIdentity(Role.DECODE, Incarnation("there"), "there")
CHUNK = TransferKVChunk(ROOM, Generation(3), index_array([0], "pages"), 0, is_last=True)


class Told:
    """A delivery, and what it told."""

    def __init__(self, number: int, wanted: bool = True) -> None:
        self.ends: list[KVTransferError | None] = []
        self.drained: list[Sequence[DeliveryId]] = []
        self.delivery = Delivery(
            delivery_id(CHUNK.generation, number),
            CHUNK,
            PEER,
            lambda: [WriteBatch.of(0, 0, [0], [0], [8])],
            Deadline.after(60),
            lambda: wanted,
            self.ends.append,
            self.drained.append,
            lambda _slot, _piece: None,
            Events(Node(Role.PREFILL, "local", Incarnation("here"))),
        )


def read_and_landed(delivery: Delivery) -> None:
    assert delivery.plan()
    delivery.let_go()  # the engine has it
    delivery.end(None)
    all_drained([delivery])


def nobody_wanted_it_before_its_turn(delivery: Delivery) -> None:
    delivery.let_go()
    assert not delivery.plan()


def nobody_wanted_it_while_it_was_packed(delivery: Delivery) -> None:
    assert delivery.plan()
    delivery.let_go()
    delivery.loosen()
    delivery.refuse()


def nobody_wanted_it_between_two_slots(delivery: Delivery) -> None:
    assert delivery.plan()
    delivery.loosen()
    delivery.let_go()
    assert not delivery.hold()
    delivery.end(None)
    all_drained([delivery])


@pytest.mark.parametrize(
    "life",
    [
        read_and_landed,
        nobody_wanted_it_before_its_turn,
        nobody_wanted_it_while_it_was_packed,
        nobody_wanted_it_between_two_slots,
    ],
)
def test_its_end_and_that_it_is_drained_are_told_once(life: Callable[[Delivery], None]) -> None:
    told = Told(1)
    life(told.delivery)
    assert told.drained == [[told.delivery.number]]
    assert len(told.ends) == 1


def test_what_was_drained_before_is_not_told_again_with_those_that_went_out_beside_it() -> None:
    one, other = Told(1), Told(2)
    one.delivery.let_go()
    all_drained([one.delivery, other.delivery])
    assert one.drained == [[one.delivery.number], [other.delivery.number]]
    all_drained([one.delivery, other.delivery])
    assert len(one.drained) == 2
    assert not other.drained


def test_what_nobody_wants_ends_and_says_why() -> None:
    told = Told(1, wanted=False)
    assert not told.delivery.plan()
    (error,) = told.ends
    assert error is not None
    assert error.code is FailureCode.ABORTED
    assert told.drained == [[told.delivery.number]]
