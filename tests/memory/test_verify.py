"""``transfer.verify``: what arrives damaged is found, named, and fails the room on both sides."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Literal

import attrs
import numpy as np
import pytest
import torch
from groups import Groups, Model, ended, groups, ranks
from pair import MHA, MLA, Pair, config, finish, paired, pools, same_pages, soon

from pdcore import (
    Config,
    DecodeManager,
    FailureCode,
    KVPoll,
    KVReceiver,
    KVSender,
    KVTransferError,
    PageOrder,
    Pools,
    Region,
    RoomId,
    StateBuffer,
    StateComponent,
    Topology,
    TransferModel,
    select,
)
from pdcore.contract.regions import WriteBatch
from pdcore.decode import verification as arrived
from pdcore.errors import ConfigError, PlanError
from pdcore.memory import device_bytes
from pdcore.memory.device_bytes import DeviceBytes
from pdcore.memory.digest import SAMPLED, digests_of, memory_of, spans_of
from pdcore.model import Device, DeviceKind
from pdcore.plan import ItemCopier, join
from pdcore.prefill import verification as examiner
from pdcore.wire import Digests, Message, Route

MODELS = list(TransferModel)
Mode = Literal["off", "sample", "all"]
STATE = [
    StateComponent("mamba", 8, (StateBuffer("conv", 96), StateBuffer("temporal", 160))),
    StateComponent("swa", 32, (StateBuffer("0.k", 40),)),
]


def verifying(mode: Mode = "all", model: TransferModel = TransferModel.WORKERS) -> Config:
    plain = config(model)
    return attrs.evolve(plain, transfer=attrs.evolve(plain.transfer, verify=mode))


Tamper = Callable[[DecodeManager, Digests], Message | None]


@pytest.fixture
def tamper(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tamper], None]:
    """Let a test change decode's memory, or the digests, between arrival and check."""

    def start(change: Tamper) -> None:
        real = DecodeManager._hear

        def hear(self: DecodeManager, route: Route, message: Message) -> None:
            changed = change(self, message) if isinstance(message, Digests) else message
            if changed is not None:
                real(self, route, changed)

        monkeypatch.setattr(DecodeManager, "_hear", hear)

    return start


def flip(pools_: Pools, buffer: int, page: int, byte: int) -> None:
    pools_.arrays[buffer][page, byte] ^= 1


def failures(pair: Pair, room: int = 5) -> tuple[KVTransferError, KVTransferError]:
    """Send three pages to pages 7, 9 and 8 and return why the room failed on both sides."""
    sender, receiver = pair.open(room)
    sender.init(3)
    receiver.send_metadata([7, 9, 8])
    sender.send([1, 2])
    sender.send([30])
    assert (sender.wait(soon()), receiver.wait(soon())) == (KVPoll.FAILED, KVPoll.FAILED)
    released(sender.release_safe)
    released(receiver.release_safe)
    here, there = sender.failure(), receiver.failure()
    sender.clear()
    receiver.clear()
    assert here is not None
    assert there is not None
    return here, there


def released(safe: Callable[[], bool]) -> None:
    deadline = soon()
    while not safe():
        assert not deadline.expired
        threading.Event().wait(0.01)


@pytest.mark.parametrize("mode", ["sample", "all"])
@pytest.mark.parametrize("model", MODELS)
def test_whole_requests_with_state_and_aux_pass(mode: Mode, model: TransferModel) -> None:
    with paired(verifying(mode, model), source=pools(state=STATE), target=pools(state=STATE)) as pair:
        for room in (1, 2):
            sender, receiver = pair.open(room)
            assert pair.prefill.pools.aux is not None
            assert pair.decode.pools.aux is not None
            pair.prefill.pools.aux.set(3, RoomId(room), {"first_token": room})
            sender.init(20, 3)
            receiver.send_metadata(range(20, 40), 4, [[5], [1, 9]])
            sender.send(range(7))
            sender.send(range(7, 20), [[2], [30, 0]])
            assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
            assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
            assert same_pages(pair.prefill.pools, range(20), pair.decode.pools, range(20, 40))
            assert pair.decode.pools.aux.get(4, RoomId(room))["first_token"] == room
            finish(sender, receiver)
        assert not pair.decode.channel.counts
        assert not pair.prefill.channel.counts


@pytest.mark.parametrize("mode", ["sample", "all"])
@pytest.mark.parametrize("model", MODELS)
def test_a_flipped_byte_fails_the_room_on_both_sides_and_is_named(
    mode: Mode, model: TransferModel, tamper: Callable[[Tamper], None]
) -> None:
    item = MHA.buffers[3].item_len
    flipped = []

    def damage(manager: DecodeManager, message: Digests) -> Message:
        if message.room == 5 and message.chunk == 0:
            flip(manager.pools, 3, 9, 17)
            flipped.append(message)
        return message

    tamper(damage)
    with paired(verifying(mode, model)) as pair:
        here, there = failures(pair)
        pair.move(6, [1, 2, 3], [4, 5, 6])
    assert len(flipped) == 1
    name = MHA.buffers[3].name
    for failure in (here, there):
        assert failure.code is FailureCode.INTEGRITY
        assert failure.happened == f"room 5 arrived damaged: page 9 of {name} from prefill rank 0"
        assert failure.there_is.startswith(f"chunk 0, bytes 0 to {item} of that page: CRC-32 ")
        assert failure.there_is.endswith("1 of 16 digests differ")
        assert failure.to_do.startswith("send the request again")


def test_many_digests_come_in_parts_and_all_must_be_right(
    monkeypatch: pytest.MonkeyPatch, tamper: Callable[[Tamper], None]
) -> None:
    parts = []

    def damage(manager: DecodeManager, message: Digests) -> Message:
        parts.append((message.chunk, message.part, len(message.digests)))
        if message.room == 5 and message.part == 15:
            flip(manager.pools, 7, 9, 0)
        return message

    tamper(damage)
    monkeypatch.setattr(examiner, "MOST_AT_ONCE", 5)
    with paired(verifying()) as pair:
        pair.move(4, [1, 2], [6, 4])
        assert parts == [(0, 0, 5), (0, 5, 5), (0, 10, 5), (0, 15, 2)]  # and the aux slot
        here, there = failures(pair)
    for failure in (here, there):
        assert (
            failure.happened == f"room 5 arrived damaged: page 9 of {MHA.buffers[7].name} from prefill rank 0"
        )


def test_damaged_state_is_named_too(tamper: Callable[[Tamper], None]) -> None:
    def damage(manager: DecodeManager, message: Digests) -> Message:
        region = manager.pools.state[0].regions[1]
        assert isinstance(region.owner, np.ndarray)
        region.owner[5, 0] ^= 1
        return message

    tamper(damage)
    with paired(verifying(), source=pools(state=STATE), target=pools(state=STATE)) as pair:
        sender, receiver = pair.open(5)
        sender.init(1)
        receiver.send_metadata([7], None, [[5], [1]])
        sender.send([1], [[2], [30]])
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.happened == (
            "room 5 arrived damaged: item 5 of state.mamba.temporal from prefill rank 0"
        )
        assert sender.wait(soon()) is KVPoll.FAILED


def forty_pages(both: Groups, room: int) -> tuple[list[KVSender], list[KVReceiver]]:
    """Start a request of forty pages in two chunks."""
    senders, receivers = both.open(room)
    for manager, sender in zip(both.prefill, senders, strict=True):
        both.write(manager, range(40))
        sender.init(40)
    both.wipe()
    for receiver in receivers:
        receiver.send_metadata(range(40))
    for sender in senders:
        sender.send(range(25))
        sender.send(range(25, 40))
    return senders, receivers


CASES = {
    "TP 2 to 1": (Model(kv_heads=4), ranks(tp=2), ranks(), 1),
    "TP 1 to 2": (Model(kv_heads=4), ranks(), ranks(tp=2), 0),
    "head-major, TP 2 to 1": (Model(order=PageOrder.KV_HEAD_TOKEN), ranks(tp=2), ranks(), 1),
    "PP 2 to 1": (Model(kv_heads=4), ranks(pp=2), ranks(), 1),
    "CP 2 to 1": (Model(kv_heads=0), ranks(cp=2), ranks(), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_between_unequal_groups_the_rank_that_sent_the_bytes_is_named(
    case: str, tamper: Callable[[Tamper], None]
) -> None:
    model, prefill, decode, guilty = CASES[case]

    def damage(manager: DecodeManager, message: Digests) -> Message:
        if message.room == 2 and message.rank == guilty:
            target = manager.pools.regions[int(message.regions[0])].owner
            assert isinstance(target, np.ndarray)
            target.reshape(-1)[int(message.offsets[0])] ^= 1
        return message

    tamper(damage)
    with groups(model, prefill, decode, cfg=verifying()) as both:
        senders, receivers = forty_pages(both, 1)
        ended([*senders, *receivers])
        for decoder in both.decode:
            both.check(decoder, range(40))
        senders, receivers = forty_pages(both, 2)
        assert receivers[0].wait(soon()) is KVPoll.FAILED
        assert senders[guilty].wait(soon()) is KVPoll.FAILED
        for failure in (receivers[0].failure(), senders[guilty].failure()):
            assert failure is not None
            assert failure.code is FailureCode.INTEGRITY
            assert failure.happened.endswith(f"from prefill rank {guilty}")


# What goes wrong between the two


def test_a_room_that_waits_for_a_verdict_may_be_aborted_on_either_side(
    tamper: Callable[[Tamper], None],
) -> None:
    asked = threading.Semaphore(0)

    def lose(_manager: DecodeManager, _message: Digests) -> None:
        asked.release()

    tamper(lose)
    with paired(verifying()) as pair:
        for room, side in ((1, 0), (2, 1)):
            handles = sender, receiver = pair.open(room)
            sender.init(1)
            receiver.send_metadata([7])
            sender.send([1])
            assert asked.acquire(timeout=30)
            assert sender.poll() is not KVPoll.SUCCESS
            handles[side].abort()
            for handle in handles:
                assert handle.wait(soon()) is KVPoll.FAILED
                released(handle.release_safe)


@pytest.mark.parametrize(
    "changes",
    [
        {"regions": np.array([99])},
        {"regions": np.array([-1])},
        {"offsets": np.array([-1])},
        {"offsets": np.array([2**62])},
        {"lengths": np.array([0])},
        {"lengths": np.array([2**63 - 1])},
        {"digests": np.array([1, 2])},
    ],
)
def test_digests_that_make_no_sense_fail_the_room_and_read_nothing(
    changes: dict[str, np.ndarray], tamper: Callable[[Tamper], None]
) -> None:
    def forge(_manager: DecodeManager, message: Digests) -> Message:
        lists = ("regions", "offsets", "lengths", "digests")
        return attrs.evolve(message, **{name: getattr(message, name)[:1] for name in lists} | changes)

    tamper(forge)
    with paired(verifying()) as pair:
        here, there = failures(pair)
        assert pair.decode.channel.alive
    for failure in (here, there):
        assert failure.code is FailureCode.INTEGRITY
        assert failure.happened == "prefill rank 0 sent digests of room 5 that make no sense"


def test_sides_that_verify_differently_are_not_paired() -> None:
    with paired(verifying("all")) as pair:
        other = DecodeManager(select("local"), pools(), Topology(), verifying("sample"))
        with other:
            receiver = other.receiver(pair.bootstrap.address, RoomId(1))
            receiver.init()
            assert receiver.wait(soon()) is KVPoll.FAILED
            failure = receiver.failure()
    assert failure is not None
    assert failure.code is FailureCode.INCOMPATIBLE
    assert "transfer.verify: prefill all, decode sample" in failure.there_is
    assert failure.to_do == "set transfer.verify alike on both sides"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (DeviceKind.CUDA, "torch {torch} sees {count} CUDA devices"),
        (DeviceKind.NPU, "pdcore digests memory of CPUs and of CUDA devices only"),
    ],
)
def test_memory_that_nobody_here_can_digest_is_refused(kind: DeviceKind, why: str) -> None:
    host, absent = pools(MLA, None), Device(kind, torch.cuda.device_count())
    device = [attrs.evolve(region, device=absent) for region in host.kv]
    with pytest.raises(ConfigError) as caught:
        DecodeManager(select("local"), Pools(MLA, device), Topology(), verifying("sample"))
    (problem,) = caught.value.problems
    assert problem.path == "transfer.verify"
    why = why.format(torch=torch.__version__, count=torch.cuda.device_count())
    assert problem.reason == (
        f"'sample' cannot digest {MLA.buffers[0].name} on {absent}: {why}; set it to 'off'"
    )


@pytest.mark.parametrize("lengths", [[16384] * 9, [4, 8, 64, 64], [1, 2, 3, 5, 7, 1000, 4096, 4099, 65536]])
@pytest.mark.parametrize("step", [1, 4, 4096])
def test_a_device_finds_the_digests_that_the_host_finds(lengths: list[int], step: int) -> None:
    random = np.random.default_rng(3)
    memory = torch.from_numpy(random.integers(0, 256, 2**18, np.uint8))
    sizes = np.array(lengths)
    offsets = random.integers(0, 2**18 - sizes) // step * step
    on_host = memory_of([Region.of("memory", memory)])
    regions = np.zeros(len(sizes), np.int64)
    assert (
        digests_of([DeviceBytes(memory)], regions, offsets, sizes).tolist()
        == digests_of(on_host, regions, offsets, sizes).tolist()
    )


@pytest.mark.parametrize(("offset", "length"), [(-1, 4), (2**10 - 3, 4), (0, 0)])
def test_a_device_is_never_asked_for_what_is_outside(offset: int, length: int) -> None:
    memory = DeviceBytes(torch.zeros(2**10, dtype=torch.uint8))
    with pytest.raises(PlanError, match="leaves its region") as caught:
        memory.digests(np.array([0, offset]), np.array([8, length]))
    assert caught.value.there_is == f"{length} bytes at offset {offset} of 1024"


def test_a_device_works_on_large_spans_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_bytes, "AT_ONCE", 256)
    memory = torch.arange(2**16, dtype=torch.int32).view(torch.uint8)
    offsets = np.arange(64) * 4096
    found = DeviceBytes(memory).digests(offsets, np.full(64, 4096))
    assert found.tolist() == [zlib.crc32(memory[at : at + 4096].numpy().tobytes()) for at in offsets.tolist()]


def test_a_device_that_cannot_digest_what_arrived_fails_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(arrived, "digests_of", exhausted)
    with paired(verifying()) as pair:
        here, there = failures(pair)
    for failure in (here, there):
        assert failure.code is FailureCode.INTEGRITY
        assert "what arrived for room 5 cannot be digested" in failure.happened
        assert "CUDA out of memory" in failure.there_is


def test_off_sends_no_digest_and_starts_no_thread(tamper: Callable[[Tamper], None]) -> None:
    seen: list[Digests] = []
    tamper(lambda _manager, message: seen.append(message))
    with paired(config()) as pair:
        pair.move(1, [1, 2], [3, 4])
        names = {thread.name for thread in threading.enumerate()}
    assert not seen
    assert not names & {"pdcore-lane-examiner", "pdcore-lane-verifier"}


def test_damage_in_pages_with_gaps_between_them_names_the_page(tamper: Callable[[Tamper], None]) -> None:
    apart = attrs.evolve(
        MHA, buffers=tuple(attrs.evolve(b, item_stride=b.item_len + 40) for b in MHA.buffers)
    )

    def damage(manager: DecodeManager, message: Digests) -> Message:
        if message.room == 5 and message.chunk == 0:
            flip(manager.pools, 3, 9, 17)
        return message

    tamper(damage)
    with paired(verifying("all"), target=pools(apart)) as pair:
        for failure in failures(pair):
            assert f"page 9 of {MHA.buffers[3].name}" in failure.happened
        pair.move(6, [1, 2, 3], [4, 5, 6])


# Spans


def test_spans_cut_merged_entries_at_pages_and_leave_slices_whole() -> None:
    item_lens = np.array([10, 4])
    pairs = [WriteBatch.of(0, 0, [100, 0], [20, 3], [30, 5]), WriteBatch.of(2, 1, [7], [3], [6])]
    spans = spans_of(join(pairs), item_lens, None, 0)
    rows = zip(*(values.tolist() for values in attrs.astuple(spans, recurse=False)), strict=True)
    assert list(rows) == [
        (0, 100, 0, 20, 10),
        (0, 110, 0, 30, 10),
        (0, 120, 0, 40, 10),
        (0, 0, 0, 3, 5),
        (2, 7, 1, 3, 1),
        (2, 8, 1, 4, 4),
        (2, 12, 1, 8, 1),
    ]


def test_no_copies_have_no_spans() -> None:
    assert len(spans_of(WriteBatch.empty(), np.array([10]), SAMPLED, 0).lengths) == 0


def test_a_sample_is_a_part_of_all_and_the_same_for_the_same_seed() -> None:
    batch = ItemCopier("page", [8, 24], [0, 1], [0, 1], 5000, 5000)(np.arange(4000), np.arange(1000, 5000))
    lens = np.array([8, 24])
    everything = spans_of(batch, lens, None, 0)
    assert len(everything.lengths) == 8000
    assert int(everything.lengths.sum()) == batch.nbytes
    drawn = [spans_of(batch, lens, SAMPLED, seed) for seed in (1, 1, 2)]
    places = [set(zip(s.remote_regions.tolist(), s.remote_offsets.tolist(), strict=True)) for s in drawn]
    assert len(places[0]) == SAMPLED
    assert places[0] == places[1]
    assert places[0] != places[2]
    whole = set(zip(everything.remote_regions.tolist(), everything.remote_offsets.tolist(), strict=True))
    assert places[0] < whole


def test_digests_see_every_single_byte() -> None:
    memory = pools(MLA, None)
    views = memory_of(memory.regions)
    span = np.array([1]), np.array([64]), np.array([32])
    before = digests_of(views, *span)
    flat = memory.arrays[1].reshape(-1)
    for at in range(60, 100):
        flat[at] ^= 1
        assert (digests_of(views, *span) != before).any() == (64 <= at < 96)
        flat[at] ^= 1
