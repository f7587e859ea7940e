"""Unequal groups of ranks: each byte once, in the right place, over the real local engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np
import pytest
from groups import Group, Groups, Model, ended, extra_decode, groups, held, ranks
from pair import soon

from pdcore import Deadline, FailureCode, KVPoll, PageOrder, RoomId, StateBuffer, StateComponent, Topology
from pdcore.pairing.topology import DPChoice
from pdcore.wire import RoomStatus

MHA, MLA = Model(kv_heads=8), Model(kv_heads=0)
MIXED = Model(kv_heads=8, narrow=(1, 3), narrow_heads=4, scaled=True)
"""Gemma's kind: layers of 8 heads and of 4, and scales that every rank has."""
CASES = {
    "TP 4 to 2": (MHA, ranks(tp=4), ranks(tp=2)),
    "TP 2 to 4": (MHA, ranks(tp=2), ranks(tp=4)),
    "TP 8 to 2 with 4 heads": (Model(kv_heads=4), ranks(tp=8), ranks(tp=2)),
    "TP 2 to 8 with 4 heads": (Model(kv_heads=4), ranks(tp=2), ranks(tp=8)),
    "TP 8 to 8 with 2 heads": (Model(kv_heads=2), ranks(tp=8), ranks(tp=8)),
    "MLA 4 to 1": (MLA, ranks(tp=4), ranks()),
    "MLA 1 to 4": (MLA, ranks(), ranks(tp=4)),
    "PP 2 to 1": (MHA, ranks(pp=2), ranks()),
    "PP 2 to 2": (MHA, ranks(pp=2), ranks(pp=2)),
    "TP 2 and PP 2 to TP 1": (MHA, ranks(tp=2, pp=2), ranks()),
    "CP 2 to 1": (MHA, ranks(cp=2), ranks()),
    "head-major, TP 2 to 4": (Model(order=PageOrder.HEAD_TOKEN), ranks(tp=2), ranks(tp=4)),
    "pages of vLLM on the CPU, TP 2 to 1": (Model(order=PageOrder.HEAD_TOKEN_KV), ranks(tp=2), ranks()),
    "layers of 8 and 4 heads, TP 2 to 4": (MIXED, ranks(tp=2), ranks(tp=4)),
    "layers of 8 and 4 heads, TP 4 to 8": (MIXED, ranks(tp=4), ranks(tp=8)),
    "layers of 8 and 4 heads, TP 8 to 2": (
        attrs.evolve(MIXED, order=PageOrder.KV_HEAD_TOKEN),
        ranks(tp=8),
        ranks(tp=2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_byte_arrives_once_and_in_its_place(case: str) -> None:
    model, prefill, decode = CASES[case]
    rng = np.random.default_rng(7)
    with groups(model, prefill, decode) as both:
        for room, held in ((1, 0), (2, 3), (3, 7)):
            source, target = (rng.permutation(48)[:7].tolist() for _ in range(2))
            senders, receivers = both.open(room)
            for manager, sender in zip(both.prefill, senders, strict=True):
                both.write(manager, source)
                assert manager.pools.aux is not None
                manager.pools.aux.set(room, RoomId(room), {"first_token": 100 * room})
                sender.init(7, room)
            both.wipe()
            for receiver in receivers:
                receiver.send_metadata(target[held:], room, decode_prefix_len=held * 4)
            for sender in senders:
                sender.send(source[:5])
                sender.send(source[5:])
            ended([*senders, *receivers])
            for decoder in both.decode:
                both.check(decoder, target[held:], held)
                assert decoder.pools.aux is not None
                assert decoder.pools.aux.get(room, RoomId(room))["first_token"] == 100 * room


def test_layers_with_fewer_heads_are_told_by_their_sizes_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with groups(attrs.evolve(MIXED, silent=True), ranks(tp=4), ranks(tp=8)) as both:
        serve(both, 1)
    assert {r.getMessage().partition(": ")[2] for r in caplog.records if r.name == "pdcore.prefill"} == {
        "4 buffers, first layer.1.k, have by their sizes at most 4 KV heads, not the 8 of the layout; "
        "say so with KVBuffer(units=...)"
    }


def window(rank: Topology) -> Sequence[StateComponent]:
    """Pages of 4 tokens of a sliding window: 4 KV heads of 8 bytes, and scales that every rank holds."""
    units = held(4, rank)
    keys = StateBuffer("k", 4 * len(units) * 8, (4, len(units), 8), 1, units=4)
    return (StateComponent("swa", 6, (keys, StateBuffer("scale", 4, units=1))),)


@pytest.mark.parametrize(("prefill", "decode"), [(8, 2), (2, 8), (4, 8)])
def test_pages_of_state_come_once_from_replicas_of_their_heads(prefill: int, decode: int) -> None:
    with groups(MHA, ranks(tp=prefill), ranks(tp=decode), state=window) as both:
        whole = np.random.default_rng(5).integers(1, 256, (4, 4, 8), np.uint8)
        senders, receivers = both.open(1)
        for sender, manager in zip(senders, both.prefill, strict=True):
            keys, scale = (region.owner for region in manager.pools.state[0].regions)
            assert isinstance(keys, np.ndarray)
            assert isinstance(scale, np.ndarray)
            keys[2], scale[2] = whole[:, held(4, manager.topology)].reshape(-1), [9, 8, 7, 6]
            both.write(manager, [5])
            sender.init(1)
        for receiver in receivers:
            receiver.send_metadata([3], state_indices=[[4]])
        for sender in senders:
            sender.send([5], state_indices=[[2]])
        ended([*senders, *receivers])
        for decoder in both.decode:
            keys, scale = (region.owner for region in decoder.pools.state[0].regions)
            assert isinstance(keys, np.ndarray)
            assert isinstance(scale, np.ndarray)
            assert np.array_equal(keys[4], whole[:, held(4, decoder.topology)].reshape(-1))
            assert scale.tolist() == [[0] * 4] * 4 + [[9, 8, 7, 6], [0] * 4]
            both.check(decoder, [3])


DP_2 = [*ranks(tp=2, dp_size=2), *ranks(tp=2, dp_size=2, dp_rank=1)]


@pytest.mark.parametrize("choice", [DPChoice.BY_ROOM, DPChoice.QUERY])
def test_a_room_is_taken_from_the_dp_rank_that_has_it(choice: DPChoice) -> None:
    with groups(MHA, DP_2, ranks()) as both:
        for room in (2, 3, 5, 6):
            dp_rank = room % 2 if choice is DPChoice.BY_ROOM else 1 - room % 2
            senders, receivers = both.open(room, dp_rank=dp_rank, choice=choice)
            chosen = [m for m in both.prefill if m.topology.dp_rank == dp_rank]
            if choice is DPChoice.QUERY:
                chosen[0].register_dp_rank(RoomId(room))
            for manager, sender in zip(chosen, senders, strict=True):
                both.write(manager, [room])
                sender.init(1)
                sender.send([room])
            both.wipe()
            for receiver in receivers:
                receiver.send_metadata([9])
            ended([*senders, *receivers])
            both.check(both.decode[0], [9])


def test_one_rank_that_fails_fails_the_room_everywhere_and_the_next_room_is_served() -> None:
    with groups(MHA, ranks(tp=2), ranks(tp=2)) as both:
        senders, receivers = both.open(1)
        for sender, receiver in zip(senders, receivers, strict=True):
            sender.init(1)
            receiver.send_metadata([3])
        ended_first = receivers[0]
        senders[0].abort()
        assert ended_first.wait(soon()) is KVPoll.FAILED
        serve(both, 2)


def test_a_decode_rank_hears_of_one_prefill_rank_and_stops_the_others() -> None:
    with groups(MHA, ranks(tp=4), ranks(tp=2)) as both:
        senders, receivers = both.open(1)
        for sender in senders:
            sender.init(2)
        for receiver in receivers:
            receiver.send_metadata([3, 4])
        senders[0].abort()
        for handle in (receivers[0], senders[1]):
            assert handle.wait(soon()) is KVPoll.FAILED
            failure = handle.failure()
            assert failure is not None
            assert failure.code is FailureCode.ABORTED
        for sender in senders[2:]:
            sender.send([5, 6])
        ended([*senders[2:], receivers[1]])
        serve(both, 2)


def test_pages_are_safe_only_when_every_prefill_rank_has_drained() -> None:
    with groups(MHA, ranks(tp=2), ranks()) as both:
        senders, (receiver,) = both.open(1)
        for sender in senders:
            sender.init(2)
        receiver.send_metadata([3, 4])
        senders[0].send([5, 6])
        assert senders[0].wait(soon()) is KVPoll.SUCCESS
        until(both, lambda: senders[1].poll() is KVPoll.WAITING_FOR_INPUT)
        assert receiver.poll() is KVPoll.TRANSFERRING
        assert not receiver.release_safe()
        receiver.abort()
        assert senders[1].wait(soon()) is KVPoll.FAILED
        until(both, receiver.release_safe)
        serve(both, 2)


def test_a_rank_that_is_not_done_does_not_count_when_the_others_are() -> None:
    with groups(MHA, ranks(tp=2), ranks()) as both:
        senders, (receiver,) = both.open(1)
        for sender in senders:
            sender.init(1)
        receiver.send_metadata([3])
        generation = receiver.record.generation
        until(both, lambda: senders[1].poll() is KVPoll.WAITING_FOR_INPUT)
        (route,) = both.prefill[1]._peers()
        still = RoomStatus(RoomId(1), generation, 1, KVPoll.TRANSFERRING, drained=False)
        both.prefill[1].channel.post(route, still)
        senders[0].send([5])
        assert senders[0].wait(soon()) is KVPoll.SUCCESS
        assert receiver.wait(Deadline.after(0.2)) is KVPoll.TRANSFERRING
        both.write(both.prefill[1], [5])
        senders[1].send([5])
        ended([*senders, receiver])


def test_a_prefill_rank_waits_for_all_the_decode_ranks_that_it_serves() -> None:
    with groups(MHA, ranks(tp=1), ranks(tp=2)) as both:
        (sender,), receivers = both.open(1)
        both.write(both.prefill[0], [5])
        sender.init(1)
        sender.send([5])
        receivers[0].send_metadata([3])
        assert sender.wait(Deadline.after(0.2)) is KVPoll.BOOTSTRAPPING
        receivers[1].send_metadata([4])
        ended([sender, *receivers])
        both.check(both.decode[0], [3])
        both.check(both.decode[1], [4])


@pytest.mark.parametrize(
    ("model", "prefill", "decode", "fields"),
    [
        (MHA, ranks(tp=2), ranks(tp=3), {"topology.tp_size: prefill 2, decode 3"}),
        (MHA, ranks(), ranks(cp=2), {"topology.cp_size: prefill 1, decode 2"}),
        (MHA, ranks(pp=2), ranks(pp=4), {"topology.pp_size: prefill 2, decode 4"}),
    ],
    ids=["TP 2 to 3", "decode CP 2", "PP 2 to 4"],
)
def test_an_illegal_pair_is_refused_on_both_sides_and_others_are_served(
    model: Model, prefill: Group, decode: Group, fields: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    with groups(model, prefill, prefill) as both:
        wrong = attrs.evolve(both, decode=[])
        with extra_decode(wrong, decode) as strangers:
            for stranger in strangers:
                receiver = stranger.receiver(both.bootstrap, RoomId(1))
                receiver.init()
                assert receiver.wait(soon()) is KVPoll.FAILED
                failure = receiver.failure()
                assert failure is not None
                assert failure.code is FailureCode.INCOMPATIBLE
                for field in fields:
                    assert field in failure.there_is
        logged = [record for record in caplog.records if any(f in record.getMessage() for f in fields)]
        assert {record.name for record in logged} == {"pdcore.prefill", "pdcore.decode"}
        serve(both, 2)


def test_layers_that_no_stage_holds_are_refused_by_decode() -> None:
    with groups(Model(layers=4), ranks(pp=2), []) as both:
        taller = attrs.evolve(both, model=Model(layers=6))
        with extra_decode(taller, ranks()) as (stranger,):
            receiver = stranger.receiver(both.bootstrap, RoomId(1))
            receiver.init()
            assert receiver.wait(soon()) is KVPoll.FAILED
            failure = receiver.failure()
            assert failure is not None
            assert failure.code is FailureCode.INCOMPATIBLE
            assert (
                "layout.buffers: prefill layer.4.k from no rank, decode layer.4.k exactly" in failure.there_is
            )


def until(both: Groups, true: Callable[[], bool]) -> None:
    """Wait until something is true that no call waits for."""
    deadline = soon()
    while not true() and not deadline.expired:
        both.decode[0].finished(Deadline.after(0.01))
    assert true()


def serve(both: Groups, room: int) -> None:
    """Move one page from all prefill ranks to all decode ranks, and check it."""
    senders, receivers = both.open(room)
    for manager, sender in zip(both.prefill, senders, strict=True):
        both.write(manager, [7])
        sender.init(1)
        sender.send([7])
    both.wipe()
    for receiver in receivers:
        receiver.send_metadata([9])
    ended([*senders, *receivers])
    for decoder in both.decode:
        both.check(decoder, [9])
