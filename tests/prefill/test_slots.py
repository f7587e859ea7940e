"""The slots of one pair: when packing pays, which slots are free, and what goes through them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import pytest
from pair import soon

from pdcore.contract.engine import EngineCapabilities
from pdcore.contract.regions import WriteBatch
from pdcore.errors import FailureCode
from pdcore.layout.kv import KVLayout
from pdcore.layout.staging import StagingLayout
from pdcore.memory.packing import CopyCost, HostBytes
from pdcore.memory.pools import Pools
from pdcore.memory.staging import StagingMemory
from pdcore.model import CPU, Deadline
from pdcore.prefill.lanes.slots import PeerSlots, Ring, pays

DEAR = 45e-6
"""What an entry costs some engines, in seconds."""
ENGINE, CHEAP = EngineCapabilities(entry_cost=DEAR), EngineCapabilities()
COPYING = CopyCost(per_entry=30e-9, per_byte=0.1e-9)
"""As on a host: 10 GB/s."""
KIB, MIB = 2**10, 2**20
SLOT = 4 * MIB
PAST = Deadline(0.0)

LAYOUT = KVLayout.heads(layers=range(2), kv_heads=1, head_dim=8, page_size=2, num_pages=8)
HERE, THERE = StagingLayout(2, 3, 4096), StagingLayout(4, 5, 8192)


def slots(
    here: StagingLayout = HERE,
    there: StagingLayout = THERE,
    *,
    engine: EngineCapabilities = ENGINE,
    limit: int = MIB,
) -> PeerSlots:
    """The slots of a pair that has ring 1 here and ring 2 there."""
    pools = Pools.allocate(LAYOUT)
    memory = StagingMemory.allocate(here, pools, CPU)
    return PeerSlots(memory, Ring(here, 4, 1), Ring(there, 9, 2), COPYING, engine, limit)


# --- whether it pays -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "each", "cost", "packed"),
    [
        (4096, 256, DEAR, True),
        (1, 64 * MIB, DEAR, False),
        (1024, 128 * KIB, DEAR, False),
        (1024, 32 * KIB, DEAR, True),
        (100_000, 1, 0.0, False),
        (1, 16, DEAR, False),
    ],
    ids=["many tiny ones", "one large block", "128 KiB each", "32 KiB each", "an entry costs nothing", "one"],
)
def test_packing_pays_where_entries_are_many_dear_and_small(
    entries: int, each: int, cost: float, packed: bool
) -> None:
    assert pays(entries, entries * each, cost, COPYING, SLOT) is packed


def test_what_is_always_packed_is_so_though_it_does_not_pay() -> None:
    assert not slots(engine=CHEAP).wanted_for(100, 100)
    always = StagingLayout(2, 3, 4096, always=True)
    for here, there in ((always, THERE), (HERE, always)):
        pair = slots(here, there, engine=CHEAP)
        assert pair.always
        assert pair.wanted_for(1, 100)
        assert not pair.wanted_for(0, 0)


def test_what_pays_goes_packed_until_no_slot_comes_free_any_more() -> None:
    pair = slots()
    assert pair.wanted_for(1000, 4096)
    assert not pair.wanted_for(1, 4096)
    while pair.take() is not None:
        pair.doubt()
    assert not pair.wanted_for(1000, 4096)


# --- which are free ----------------------------------------------------------------------------


def test_a_pair_has_what_both_sides_have() -> None:
    pair = slots()
    assert pair.slot_bytes == 4096
    assert slots(engine=attrs.evolve(ENGINE, max_entry_bytes=300)).slot_bytes == 300
    assert slots(engine=attrs.evolve(ENGINE, max_entry_bytes=2**32)).slot_bytes == 4096
    assert (pair.ring, pair.lent) == (1, 2)
    assert [pair.take() for _ in range(4)] == [0, 1, 2, None]


def test_entries_of_one_message_fit_what_the_peer_takes() -> None:
    few, many = slots(limit=64 * KIB), slots(limit=MIB)
    assert 1 <= few.most_entries * 32 < 64 * KIB
    assert few.most_entries < many.most_entries
    assert slots(limit=1).most_entries == 1


def test_a_slot_that_is_given_back_is_taken_again() -> None:
    pair = slots()
    taken = [pair.take() for _ in range(3)]
    assert taken == [0, 1, 2]
    pair.give(1)
    assert (pair.take(), pair.take()) == (1, None)


def test_a_slot_that_was_handed_over_comes_back_by_the_number_of_its_use() -> None:
    pair = slots()
    slot = pair.take()
    assert slot is not None
    pair.hand(slot, 7)
    pair.back(slot, 6)  # said of an earlier pairing with the same process
    assert pair.take() != slot
    while pair.take() is not None:
        pass
    pair.back(slot, 7)
    assert pair.take() == slot
    pair.back(slot, 7)
    assert pair.take() is None


def test_who_waits_for_a_slot_is_told_of_one_and_that_there_is_none() -> None:
    pair = slots()
    assert pair.wait(PAST)
    while pair.take() is not None:
        pass
    assert not pair.wait(PAST)
    for _ in range(3):
        pair.doubt()
    assert pair.wait(PAST)
    pair.believe(2)
    assert pair.wait(PAST)


@pytest.mark.parametrize("how", ["given back", "all in doubt"])
def test_who_waits_is_woken(how: str) -> None:
    pair = slots()
    while pair.take() is not None:
        pass
    with ThreadPoolExecutor(1) as pool:
        deadline = soon()
        waiting = pool.submit(pair.wait, deadline)
        if how == "given back":
            pair.give(1)
        else:
            for _ in range(3):
                pair.doubt()
        assert waiting.result()
        assert not deadline.expired


def test_none_comes_free_any_more_only_when_all_are_in_doubt() -> None:
    pair = slots()
    pair.take()
    pair.doubt()
    dead = [pair.dead]  # others are free
    pair.take()
    pair.take()
    dead.append(pair.dead)  # others are on their way
    pair.doubt()
    dead.append(pair.dead)
    pair.doubt()
    dead.append(pair.dead)
    pair.believe(1)
    dead.append(pair.dead)
    assert dead == [False, False, False, True, False]
    assert (pair.take(), pair.take()) == (1, None)


def test_who_cannot_send_is_told_why() -> None:
    for here, to_do in (
        (HERE, "send the request again: it goes unpacked; look why the engine's writes fail"),
        (
            attrs.evolve(HERE, always=True),
            "start this worker again, since transfer.staging is 'always'; look why its engine's writes fail",
        ),
    ):
        pair = slots(here)
        while pair.take() is not None:
            pair.doubt()
        error = pair.exhausted()
        assert error.code is FailureCode.ENGINE
        assert error.happened == "no staging slot is left to send through"
        # Of the 3 that both sides have.
        assert error.there_is == "writes to all 3 failed, and the engine cannot prove that they have ended"
        assert error.to_do == to_do


# --- when none is in doubt ---------------------------------------------------------------------


def test_that_no_slot_is_in_doubt_is_told_at_once_where_none_is() -> None:
    told: list[str] = []
    pair = slots()
    slot = pair.take()
    assert slot is not None
    pair.hand(slot, 1)  # it has arrived
    pair.when_quiet(lambda: told.append("quiet"))
    assert told == ["quiet"]


def test_that_the_engine_has_no_slot_any_more_is_told_when_the_last_one_has_arrived() -> None:
    told: list[str] = []
    pair = slots()
    taken = [pair.take(), pair.take()]
    pair.when_quiet(lambda: told.append("quiet"))
    for number, slot in enumerate(taken):
        assert not told
        assert slot is not None
        pair.hand(slot, number)
    assert told == ["quiet"]
    pair.when_quiet(None)
    pair.back(0, 0)
    assert told == ["quiet"]


def test_that_no_slot_is_in_doubt_is_told_when_the_last_one_is_believed() -> None:
    told: list[str] = []
    pair = slots()
    for _ in range(2):
        pair.take()
        pair.doubt()
    pair.when_quiet(lambda: told.append("quiet"))
    assert not told
    pair.believe(1)
    assert not told
    pair.believe(0)
    assert told == ["quiet"]
    assert [pair.take() for _ in range(4)] == [2, 1, 0, None]


def test_a_slot_that_is_believed_is_told_to_nobody_who_has_not_asked() -> None:
    pair = slots()
    slot = pair.take()
    assert slot is not None
    pair.doubt()
    pair.believe(slot)
    assert [pair.take() for _ in range(4)] == [1, 2, 0, None]


# --- what goes through them --------------------------------------------------------------------


def test_a_piece_is_packed_into_its_slot_and_goes_to_that_of_the_peer() -> None:
    pools = Pools.allocate(LAYOUT)
    for number, array in enumerate(pools.arrays):
        array[:] = np.random.default_rng(number).integers(1, 256, array.shape, np.uint8)
    memory = StagingMemory.allocate(HERE, pools, CPU)
    pair = PeerSlots(memory, Ring(HERE, 4, 1), Ring(THERE, 9, 2), COPYING, ENGINE, MIB)
    piece = WriteBatch(
        np.array([3, 0]),
        np.array([1, 2]),
        np.array([0, 2, 3]),
        np.array([64, 0, 40], np.uint64),
        np.array([0, 32, 8], np.uint64),
        np.array([32, 32, 5], np.uint64),
    )
    read: list[bytes] = []
    batch = pair.pack(2, piece, lambda: read.append(memory_of(memory).tobytes()))
    assert (batch.local_regions.tolist(), batch.remote_regions.tolist()) == ([4], [9])
    assert batch.starts.tolist() == [0, 1]
    assert batch.local_offsets.tolist() == [(1 * 3 + 2) * 4096]
    assert batch.remote_offsets.tolist() == [(2 * 5 + 2) * 8192]
    assert batch.lengths.tolist() == [69]
    batch.prove_inside(
        np.array([0, 0, 0, 0, HERE.nbytes], np.uint64), np.array([0] * 9 + [THERE.nbytes], np.uint64)
    )

    first, last = (pools.arrays[n].reshape(-1) for n in (0, 3))
    expected = np.zeros(HERE.nbytes, np.uint8)
    parts = last[64:96], last[0:32], first[40:45]
    expected[5 * 4096 : 5 * 4096 + 69] = np.concatenate(parts)
    ring = memory_of(memory)
    assert np.array_equal(ring, expected)
    assert read == [expected.tobytes()]  # told once, when all lies in the slot


def test_a_full_slot_is_packed_to_its_end_and_not_into_the_next() -> None:
    layout = KVLayout.heads(layers=range(1), kv_heads=2, head_dim=64, page_size=16, num_pages=4)
    pools = Pools.allocate(layout)
    for array in pools.arrays:
        array[:] = 7
    memory = StagingMemory.allocate(HERE, pools, CPU)
    pair = PeerSlots(memory, Ring(HERE, 2, 1), Ring(THERE, 2, 0), COPYING, ENGINE, MIB)
    piece = WriteBatch.of(0, 0, [0, 4096], [0, 4096], [2048, 2048])
    assert pair.pack(0, piece, lambda: None).lengths.tolist() == [4096]
    ring = memory_of(memory)
    assert np.flatnonzero(ring).tolist() == list(range(3 * 4096, 4 * 4096))


def memory_of(memory: StagingMemory) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """All the bytes of the rings."""
    return HostBytes.of(memory.region).array
