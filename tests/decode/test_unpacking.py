"""Bytes that came packed land in the pages of their room, and a slot that says otherwise lands nowhere."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence

import attrs
import numpy as np
import numpy.typing as npt
import pytest

from pdcore.decode.unpacking import ArrivedSlots
from pdcore.errors import FailureCode
from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.kv import KVLayout, StateBuffer, StateComponent
from pdcore.layout.staging import StagingLayout
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.memory.packing import HostBytes
from pdcore.memory.pools import Pools
from pdcore.memory.staging import StagingMemory
from pdcore.model import CPU, Deadline, Generation, Incarnation, KVPoll, PeerIdentity, Role, RoomId
from pdcore.prefill.lanes.lane import Lane
from pdcore.protocol.actions import Unpack
from pdcore.protocol.stimuli import BytesUnpacked, Stimulus
from pdcore.rooms.claims import Claim, Claims
from pdcore.wire import Packed

LAYOUT = KVLayout.heads(layers=range(2), kv_heads=2, head_dim=8, page_size=4, num_pages=16)
PAGE = LAYOUT.buffers[0].item_len
STATE = (StateComponent("mamba", 8, (StateBuffer("conv", 64), StateBuffer("ssm", 48))),)
KV, CONV, SSM, ROW = 0, 4, 5, 6
"""Regions: a KV buffer, two of state, and the aux rows."""
SCHEMA = AuxSchema((AuxField("first_token", "int64"), AuxField("logprobs", "float32", (3,))))
RINGS = StagingLayout(2, 3, 4096)
ROOM, OTHER = RoomId(7), RoomId(8)
PREFILL = PeerIdentity(Role.PREFILL, Incarnation("a" * 32), "10.0.0.1:4711")
Entries = Sequence[tuple[int, int, int]]
"""Region, offset and length each."""


@attrs.frozen
class Waiting:
    """A room that is open."""

    room: RoomId

    def poll(self) -> KVPoll:
        return KVPoll.TRANSFERRING

    def release_safe(self) -> bool:
        return False


def message(entries: Entries, slot: int = 1) -> Packed:
    """Return what says of entries, grouped by region, that they lie in a slot."""
    regions = list(dict.fromkeys(region for region, _, _ in entries))
    grouped = [[e for e in entries if e[0] == region] for region in regions]
    starts = np.concatenate(([0], np.cumsum([len(group) for group in grouped]))).astype(np.int64)
    flat = [entry for group in grouped for entry in group]
    offsets, lengths = (np.array([entry[n] for entry in flat], np.int64) for n in (1, 2))
    return Packed(ROOM, Generation(3), slot, 5, np.array(regions, np.int64), starts, offsets, lengths)


class Decode:
    """Room 7 has pages 3, 4 and 9, aux slot 2 and state items 1 and 6; room 8 has those next to them."""

    def __init__(self) -> None:
        aux = MetadataBuffers(SCHEMA, 4)
        self.pools = Pools.allocate(LAYOUT, state=STATE, aux=aux)
        self.claims = Claims(self.pools)
        self.lane = Lane("arrived-test")
        self.memory = StagingMemory.allocate(RINGS, self.pools, CPU)
        self._told: queue.SimpleQueue[Stimulus] = queue.SimpleQueue()
        self.slots = ArrivedSlots(self.memory, self.pools, self.claims, self.lane, self._told.put)
        self.theirs = self.claims.take(Waiting(OTHER), np.array([5, 10]), 3, [np.array([2])])
        self.claim = self.claims.take(Waiting(ROOM), np.array([3, 9, 4]), 2, [np.array([1, 6])])

    def close(self) -> None:
        self.lane.close()
        assert self.lane.join(Deadline.after(30))

    def bytes_of(self, region: int) -> npt.NDArray[np.uint8]:
        return HostBytes.of(self.pools.regions[region]).array

    def everything(self) -> list[bytes]:
        return [self.bytes_of(number).tobytes() for number in range(len(self.pools.regions))]

    def fill(self, ring: int, slot: int) -> npt.NDArray[np.uint8]:
        """Have something arrive in a slot, and return it."""
        there = HostBytes.of(self.memory.region).array
        at = RINGS.offset(ring, slot)
        there[at : at + RINGS.slot_bytes] = np.random.default_rng(at).integers(1, 256, RINGS.slot_bytes)
        came: npt.NDArray[np.uint8] = there[at : at + RINGS.slot_bytes].copy()
        return came

    def unpack(self, packed: Packed, claim: Claim | None, ring: int = 0) -> BytesUnpacked:
        """Have it taken out, and return what came of it."""
        do = Unpack(packed.generation, PREFILL, ring, packed)
        self.slots.begin(do, claim)
        told = self._told.get(timeout=30)
        assert isinstance(told, BytesUnpacked)
        assert (told.generation, told.identity) == (packed.generation, PREFILL)
        assert told.packed is packed
        return told

    def refused(self, packed: Packed, claim: Claim | None = None) -> str:
        """Have it refused, and return why: nothing was written."""
        self.fill(0, 1)
        before = self.everything()
        failure = self.unpack(packed, claim or self.claim).failure
        assert failure is not None
        assert failure.code is FailureCode.PLAN
        assert failure.happened == "bytes of room 7 that came packed cannot be put where prefill says"
        assert self.everything() == before
        return failure.there_is


@pytest.fixture
def decode() -> Iterator[Decode]:
    decode = Decode()
    yield decode
    decode.close()


# --- what lands --------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", [0, 1])
def test_bytes_land_where_prefill_says_and_nowhere_else(decode: Decode, ring: int) -> None:
    entries = [
        (KV + 1, 9 * PAGE, PAGE),
        (KV + 1, 3 * PAGE + 16, 32),
        (KV, 4 * PAGE, PAGE),
        (CONV, 6 * 64, 64),
        (SSM, 1 * 48 + 5, 7),
        (ROW, 2 * decode.pools.regions[ROW].item_len, decode.pools.regions[ROW].item_len),
    ]
    slot, expected = decode.fill(ring, 1), [np.frombuffer(part, np.uint8) for part in decode.everything()]
    expected, at = [part.copy() for part in expected], 0
    for region, offset, length in entries:
        expected[region][offset : offset + length] = slot[at : at + length]
        at += length
    assert decode.unpack(message(entries), decode.claim, ring).failure is None
    assert decode.everything() == [part.tobytes() for part in expected]


def test_pages_side_by_side_may_come_as_one_entry(decode: Decode) -> None:
    slot = decode.fill(0, 0)
    assert decode.unpack(message([(KV, 3 * PAGE, 2 * PAGE)], slot=0), decode.claim).failure is None
    assert decode.bytes_of(KV)[3 * PAGE : 5 * PAGE].tobytes() == slot[: 2 * PAGE].tobytes()
    assert np.count_nonzero(decode.bytes_of(KV)) == 2 * PAGE


def test_a_slot_may_be_full_and_has_no_more(decode: Decode) -> None:
    whole = [(KV + n % 4, 3 * PAGE, PAGE) for n in range(RINGS.slot_bytes // PAGE)]
    slot = decode.fill(0, 1)
    assert decode.unpack(message(whole), decode.claim).failure is None
    last = decode.bytes_of(KV + 3)[3 * PAGE : 4 * PAGE]
    assert last.tobytes() == slot[-PAGE:].tobytes()
    why = decode.refused(message([*whole, (KV, 4 * PAGE, 1)]))
    assert why == "4097 bytes in a slot of 4096"


def test_slots_are_taken_out_in_order(decode: Decode) -> None:
    first, second = decode.fill(0, 0), decode.fill(0, 1)
    where = [(KV, 3 * PAGE, PAGE)]
    for slot in (0, 1):
        assert decode.unpack(message(where, slot), decode.claim).failure is None
    landed = decode.bytes_of(KV)[3 * PAGE : 4 * PAGE].tobytes()
    assert landed == second[:PAGE].tobytes() != first[:PAGE].tobytes()


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([(KV, 5 * PAGE, PAGE)], "page 5 does not belong to it"),
        ([(KV, 10 * PAGE + PAGE - 1, 1)], "page 10 does not belong to it"),
        ([(KV, 0, PAGE)], "page 0 does not belong to it"),
        ([(KV, 3 * PAGE, PAGE), (KV + 3, 11 * PAGE, PAGE)], "page 11 does not belong to it"),
        ([(KV, 4 * PAGE, 2 * PAGE)], "page 5 does not belong to it"),
        ([(KV, 4 * PAGE + 1, PAGE)], "page 5 does not belong to it"),
        ([(KV, 2 * PAGE, 2 * PAGE)], "page 2 does not belong to it"),
        ([(KV, 3 * PAGE, PAGE), (KV, 9 * PAGE - 1, 1)], "page 8 does not belong to it"),
        ([(CONV, 2 * 64, 64)], "item of state 'mamba' 2 does not belong to it"),
        ([(SSM, 1 * 48, 2 * 48)], "item of state 'mamba' 2 does not belong to it"),
        ([(SSM, 3 * 48, 48)], "item of state 'mamba' 3 does not belong to it"),
    ],
    ids=[
        "a page of another",
        "its last byte",
        "a free page",
        "a free page in the last buffer",
        "merged, the second of another",
        "one byte too far",
        "merged, the first of nobody",
        "the byte before",
        "state of another",
        "merged state",
        "free state",
    ],
)
def test_what_its_room_does_not_have_is_not_written(decode: Decode, entries: Entries, why: str) -> None:
    assert decode.refused(message(entries)) == why


@pytest.mark.parametrize(("slot", "whose"), [(3, "another's"), (0, "nobody's")])
def test_an_aux_slot_that_is_not_its_own_is_not_written(decode: Decode, slot: int, whose: str) -> None:
    row = decode.pools.regions[ROW].item_len
    why = decode.refused(message([(KV, 3 * PAGE, PAGE), (ROW, slot * row, row)]))
    assert why == f"aux slot {slot} does not belong to it", whose


def test_of_a_merged_entry_the_second_aux_slot_is_looked_at(decode: Decode) -> None:
    row = decode.pools.regions[ROW].item_len
    assert decode.refused(message([(ROW, 2 * row, 2 * row)])) == "aux slot 3 does not belong to it"


def test_a_room_whose_claim_has_ended_has_nothing(decode: Decode) -> None:
    decode.claims.free(decode.claim)
    assert decode.refused(message([(KV, 3 * PAGE, PAGE)])) == "page 3 does not belong to it"
    again = decode.claims.take(Waiting(OTHER), np.array([3]), None, [np.array([], np.int64)])
    assert decode.refused(message([(KV, 3 * PAGE, PAGE)])) == "page 3 does not belong to it"
    assert decode.unpack(message([(KV, 3 * PAGE, PAGE)]), again).failure is None


def test_a_room_without_a_claim_is_refused(decode: Decode) -> None:
    decode.fill(0, 1)
    before = decode.everything()
    failure = decode.unpack(message([(KV, 3 * PAGE, PAGE)]), None).failure
    assert failure is not None
    assert failure.code is FailureCode.PLAN
    assert "Error" not in failure.there_is  # found out before anything was tried
    assert decode.everything() == before


END = 16 * PAGE


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (END, 1),
        (END - 1, 2),
        (END + PAGE, PAGE),
        (-1, 1),
        (-PAGE, PAGE),
        (3 * PAGE, 0),
        (3 * PAGE, -1),
        (3 * PAGE, -PAGE),
        (2**63 - 1, 1),
        (2**62, 2**62),
        (3 * PAGE, 2**63 - 1),
        (-(2**63), PAGE),
    ],
)
def test_an_entry_that_leaves_its_region_is_not_written(decode: Decode, offset: int, length: int) -> None:
    good = (KV, 9 * PAGE, PAGE)
    for entries in ([(KV, offset, length)], [good, (KV, offset, length)]):
        why = decode.refused(message(entries))
        assert why == f"1 of {len(entries)} entries leave their region"


def test_state_is_measured_by_its_own_region(decode: Decode) -> None:
    assert decode.refused(message([(CONV, 8 * 64, 1)])).endswith("leave their region")
    assert decode.refused(message([(SSM, 7 * 48 + 40, 16)])).endswith("leave their region")


@pytest.mark.parametrize("slot", [-1, 3, 100, 2**62])
def test_a_slot_that_does_not_exist_is_not_read(decode: Decode, slot: int) -> None:
    assert decode.refused(message([(KV, 3 * PAGE, PAGE)], slot)) == f"slot {slot}, there are 3"


@pytest.mark.parametrize("region", [-1, 7, 2**40])
def test_a_region_that_does_not_exist_is_not_written(decode: Decode, region: int) -> None:
    assert decode.refused(message([(region, 3 * PAGE, PAGE)])) == f"regions [{region}] of 7"


GOOD = message([(KV, 3 * PAGE, 8), (KV, 4 * PAGE, 8), (KV + 1, 9 * PAGE, 8)])


@pytest.mark.parametrize(
    "changes",
    [
        {"starts": [0, 2, 2]},
        {"starts": [0, 2, 4]},
        {"starts": [1, 2, 3]},
        {"starts": [-1, 2, 3]},
        {"starts": [0, 3]},
        {"starts": [0]},
        {"starts": []},
        {"starts": [0, 0, 3]},
        {"starts": [0, 3, 3]},
        {"starts": [0, 5, 3]},
        {"starts": [0, -2, 3]},
        {"regions": [0]},
        {"regions": []},
        {"regions": [], "starts": [3]},
        {"regions": [], "starts": [0], "offsets": [], "lengths": []},
        {"regions": [0, 1, 2], "starts": [0, 1, 2, 3], "offsets": [3 * PAGE]},
        {"offsets": [3 * PAGE, 4 * PAGE]},
        {"lengths": [8, 8]},
        {"lengths": [8, 8, 8, 8]},
        {"regions": [], "starts": [], "offsets": [], "lengths": []},
    ],
    ids=str,
)
def test_a_word_that_contradicts_itself_is_refused(decode: Decode, changes: dict[str, list[int]]) -> None:
    names = ("regions", "starts", "offsets", "lengths")
    columns = (np.array(changes[n], np.int64) if n in changes else getattr(GOOD, n) for n in names)
    bad = Packed(GOOD.room, GOOD.generation, GOOD.slot, GOOD.number, *columns)
    counts = f"{len(bad.regions)} regions, {len(bad.starts)} starts, {len(bad.offsets)} offsets, "
    assert decode.refused(bad) in (f"{counts}{len(bad.lengths)} lengths", "regions [0, 1] of 7")


def test_what_was_refused_disturbs_nothing_that_comes_after(decode: Decode) -> None:
    decode.refused(message([(KV, 5 * PAGE, PAGE)]))
    slot = decode.fill(0, 1)
    assert decode.unpack(GOOD, decode.claim).failure is None
    assert decode.bytes_of(KV)[3 * PAGE : 3 * PAGE + 8].tobytes() == slot[:8].tobytes()
    assert decode.bytes_of(KV)[4 * PAGE : 4 * PAGE + 8].tobytes() == slot[8:16].tobytes()
    assert decode.bytes_of(KV + 1)[9 * PAGE : 9 * PAGE + 8].tobytes() == slot[16:24].tobytes()


def test_what_cannot_be_copied_fails_the_room_and_the_lane_goes_on(
    decode: Decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(self: HostBytes, rows: object, packed: object) -> None:
        raise MemoryError("the device is full")

    with monkeypatch.context() as broken:
        broken.setattr(HostBytes, "put", lacking)
        assert "the device is full" in decode.refused(GOOD)
    assert decode.unpack(GOOD, decode.claim).failure is None


# --- at the end --------------------------------------------------------------------------------


def test_a_lane_that_is_closed_says_so_and_takes_nothing_out() -> None:
    decode = Decode()
    decode.fill(0, 1)
    before = decode.everything()
    decode.close()
    failure = decode.unpack(GOOD, decode.claim).failure
    assert failure is not None
    assert failure.code is FailureCode.ABORTED
    assert failure.happened == "bytes of room 7 came while decode shuts down"
    assert decode.everything() == before
