"""The two managers together: requests in every order, refusals, aborts, deadlines, shutdown."""

from __future__ import annotations

import gc
import http.client
import importlib
import itertools
import threading
from typing import Literal

import attrs
import numpy as np
import pytest
from distributions import install
from pair import MHA, MLA, SCHEMA, Pair, config, fill, finish, paired, peers, pools, same_pages, soon, until

from pdcore import (
    AuxField,
    AuxSchema,
    BootstrapError,
    BootstrapServer,
    ConfigError,
    Deadline,
    DecodeManager,
    FailureCode,
    KVLayout,
    KVPoll,
    KVTransferError,
    PlanError,
    PrefillManager,
    Role,
    RoomError,
    RoomId,
    StateBuffer,
    StateComponent,
    Topology,
    TransferModel,
    select,
)
from pdcore.managers.liveness import Heartbeats
from pdcore.model import Incarnation
from pdcore.wire import Heartbeat, Message, Route

MODELS = list(TransferModel)
AuxName = Literal["engine", "tcp"]


@pytest.mark.parametrize("layout", [MHA, MLA], ids=["mha", "mla"])
@pytest.mark.parametrize("aux", ["engine", "tcp"])
@pytest.mark.parametrize("model", MODELS)
def test_a_request_arrives_with_its_aux(model: TransferModel, aux: AuxName, layout: KVLayout) -> None:
    with paired(config(model, aux), source=pools(layout), target=pools(layout)) as pair:
        before = [array.copy() for array in pair.decode.pools.arrays]
        sender, receiver = pair.open(7)
        assert pair.prefill.pools.aux is not None
        assert pair.decode.pools.aux is not None
        probabilities = np.linspace(0, 1, 8, dtype=np.float32)
        pair.prefill.pools.aux.set(3, RoomId(7), {"first_token": 42, "logprobs": probabilities})
        sender.init(5, 3)
        receiver.send_metadata([9, 4, 5, 6, 60], 11)
        sender.send([1, 20, 21, 22, 3])
        assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
        assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
        assert same_pages(pair.prefill.pools, [1, 20, 21, 22, 3], pair.decode.pools, [9, 4, 5, 6, 60])
        untouched = [p for p in range(64) if p not in (9, 4, 5, 6, 60)]
        assert all(
            np.array_equal(a[untouched], b[untouched])
            for a, b in zip(before, pair.decode.pools.arrays, strict=True)
        )
        got = pair.decode.pools.aux.get(11, RoomId(7))
        assert got["first_token"] == 42
        assert np.array_equal(got["logprobs"], probabilities)
        sent, received = sender.metric(), receiver.metric()
        assert (sent.pages, received.pages) == (5, 5)
        assert received.nbytes == 5 * layout.page_bytes
        assert sent.nbytes == received.nbytes + (SCHEMA.row_len if aux == "engine" else 0)
        # Runs: 1->9, (20, 21, 22)->(4, 5, 6), 3->60.
        assert sent.entries == 3 * len(layout.buffers) + (aux == "engine")
        assert sent.status is received.status is KVPoll.SUCCESS
        finish(sender, receiver)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("order", ["receiver sender send", "sender receiver send", "sender send receiver"])
def test_both_sides_may_come_in_any_order(order: str, model: TransferModel) -> None:
    with paired(config(model)) as pair:
        pair.move(1, [0], [0])  # paired already, so that metadata can come before the sender
        steps = order.split()
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(2))
        receiver.init()
        if steps[0] == "receiver":
            receiver.send_metadata([7, 8])
        sender = pair.prefill.sender(RoomId(2))
        sender.init(2)
        if steps[1] == "receiver":
            receiver.send_metadata([7, 8])
        sender.send([30, 10])
        if steps[2] == "receiver":
            receiver.send_metadata([7, 8])
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, [30, 10], pair.decode.pools, [7, 8])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cuts", [(), (1,), (3,), (1, 2, 3, 4, 5), (0, 0, 4), (6,)])
def test_any_split_into_chunks_gives_the_same_bytes(cuts: tuple[int, ...], model: TransferModel) -> None:
    source, target = [5, 6, 7, 30, 31, 2], [0, 1, 2, 50, 51, 40]
    with paired(config(model)) as pair:
        sender, receiver = pair.open(1)
        sender.init(6)
        receiver.send_metadata(target)
        edges = [0, *cuts, 6]
        chunks = [source[a:b] for a, b in itertools.pairwise(edges)]
        if cuts == (6,):
            chunks.pop()  # the first chunk completes the request: no second one may follow
        for chunk in chunks:
            sender.send(chunk)
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, source, pair.decode.pools, target)
        assert sender.metric().chunks == len(chunks)


def test_a_request_without_pages_still_brings_its_aux() -> None:
    with paired() as pair:
        pair.move(5, [], [], aux_slot=2)
        assert pair.decode.pools.aux is not None
        assert pair.decode.pools.aux.get(2, RoomId(5))["first_token"] == 5


def test_finished_returns_each_ended_room_once() -> None:
    with paired() as pair:
        rooms = {room: pair.open(room) for room in range(20)}
        for room, (sender, receiver) in rooms.items():
            sender.init(1)
            receiver.send_metadata([room])
            sender.send([room])
        seen: list[RoomId] = []
        while len(seen) < 20:
            batch = pair.decode.finished(soon())
            assert batch
            seen += batch
        assert sorted(seen) == list(range(20))
        assert pair.decode.finished(Deadline.after(0.001)) == []
        for sender, receiver in rooms.values():
            finish(sender, receiver)


def test_a_room_can_be_used_again_once_it_was_cleared() -> None:
    with paired() as pair:
        pair.move(9, [1], [1])
        pair.move(9, [2], [2])
        sender = pair.prefill.sender(RoomId(9))
        with pytest.raises(RoomError) as caught:
            pair.prefill.sender(RoomId(9))
        assert str(caught.value) == (
            "room 9 is open already\n"
            "  there is: generation 3, BOOTSTRAPPING\n"
            "  to do: clear() the earlier request first, or use another room"
        )
        sender.clear()


def test_state_components_travel_with_the_last_chunk() -> None:
    state = [
        StateComponent("mamba", 8, (StateBuffer("conv", 96), StateBuffer("temporal", 160))),
        StateComponent("swa", 32, (StateBuffer("window", 64),)),
    ]
    with paired(source=pools(state=state), target=pools(state=state)) as pair:
        sender, receiver = pair.open(1)
        sender.init(2)
        receiver.send_metadata([4, 5], None, [[6], [1, 2, 9]])
        sender.send([8])
        sender.send([9], [[3], [30, 31, 0]])
        finish(sender, receiver)
        for here, there in zip(pair.prefill.pools.state, pair.decode.pools.state, strict=True):
            ours, theirs = ([3], [6]) if here.component.kind == "mamba" else ([30, 31, 0], [1, 2, 9])
            for a, b in zip(here.regions, there.regions, strict=True):
                assert isinstance(a.owner, np.ndarray)
                assert isinstance(b.owner, np.ndarray)
                assert np.array_equal(a.owner[ours], b.owner[theirs])


def test_calls_out_of_order_are_refused_and_change_nothing() -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        with pytest.raises(RoomError, match="call init\\(\\) first"):
            sender.send([1])
        with pytest.raises(RoomError, match="num_pages=-1"):
            sender.init(-1)
        sender.init(2)
        with pytest.raises(RoomError, match="announced before: 2"):
            sender.init(2)
        with pytest.raises(RoomError, match="3 pages, 0 sent before, 2 announced"):
            sender.send([1, 2, 3])
        with pytest.raises(PlanError, match="1 of 1, the first is 64; the pool holds 64 pages"):
            sender.send([64])
        with pytest.raises(PlanError, match="the first is -1"):
            sender.send([-1])
        with pytest.raises(PlanError, match="1 lists, 0 state components, last chunk: True"):
            sender.send([1, 2], [[1]])
        with pytest.raises(RoomError, match="was called twice"):
            receiver.init()
        with pytest.raises(PlanError, match="shape \\(1, 2\\)"):
            receiver.send_metadata([[1, 2]])
        with pytest.raises(RoomError, match="decode_prefix_len=-4"):
            receiver.send_metadata([1, 2], decode_prefix_len=-4)
        with pytest.raises(RoomError, match="aux slot 16 of room 1 does not exist"):
            receiver.send_metadata([1, 2], 16)
        receiver.send_metadata([3, 4])
        with pytest.raises(RoomError, match="metadata sent before: True"):
            receiver.send_metadata([3, 4])
        sender.send([1, 2])
        with pytest.raises(RoomError, match="until the announced pages are complete"):
            sender.send([])
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, [1, 2], pair.decode.pools, [3, 4])


def test_index_arrays_may_change_after_the_call() -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        source, target = np.array([1, 2]), np.array([3, 4])
        sender.init(2)
        sender.send(source)
        receiver.send_metadata(target)
        source[:], target[:] = 0, 0
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, [1, 2], pair.decode.pools, [3, 4])


def test_decode_may_not_reuse_a_prefix_where_that_is_off() -> None:
    cfg = config()
    off = attrs.evolve(cfg, transfer=attrs.evolve(cfg.transfer, prefix_reuse=False))
    with paired(off) as pair:
        _, receiver = pair.open(1)
        with pytest.raises(RoomError, match=r"decode_prefix_len=8, transfer\.prefix_reuse=False"):
            receiver.send_metadata([1], decode_prefix_len=8)
        pair.move(2, [1], [1])


def test_a_prefix_that_is_longer_than_the_request_fails_both_sides() -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        sender.init(1)
        receiver.send_metadata([], decode_prefix_len=8)
        for side in (sender, receiver):
            assert side.wait(soon()) is KVPoll.FAILED
            failure = side.failure()
            assert failure is not None
            assert failure.code is FailureCode.PLAN
            assert "prefill announces 1 pages and aux slot None, decode holds 2 pages" in failure.there_is
        pair.move(2, [1], [1])


def test_sides_that_disagree_about_a_request_both_fail_with_both_counts() -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        sender.init(3)
        receiver.send_metadata([1, 2])
        for side in (sender, receiver):
            assert side.wait(soon()) is KVPoll.FAILED
            failure = side.failure()
            assert failure is not None
            assert failure.code is FailureCode.PLAN
            assert "prefill announces 3 pages and aux slot None, decode holds 0 pages" in failure.there_is
            assert "and wants 2, and aux slot None" in failure.there_is
        assert receiver.release_safe()
        sender.send([1, 2, 3])  # a scheduler that has not looked yet: nothing happens
        assert sender.release_safe()
        pair.move(2, [1], [1])


def test_peers_that_do_not_fit_are_refused_with_every_field_and_others_are_served() -> None:
    other = KVLayout.heads(
        layers=range(5), kv_heads=2, head_dim=16, page_size=8, num_pages=32, dtype="float16"
    )
    schema = AuxSchema((AuxField("first_token", "int32"),))
    with paired() as pair:
        backend = select("local")
        with DecodeManager(backend, pools(other, schema), Topology(), config()) as stranger:
            sender = pair.prefill.sender(RoomId(1))
            receiver = stranger.receiver(pair.bootstrap.address, RoomId(1))
            receiver.init()
            receiver.send_metadata([1])
            assert receiver.wait(soon()) is KVPoll.FAILED
            failure = receiver.failure()
            assert failure is not None
            assert failure.code is FailureCode.INCOMPATIBLE
            for field in (
                "layout.page_size: prefill 4, decode 8",
                "layout.dtype: prefill bfloat16, decode float16",
                "layout.buffers: prefill 8 buffers, decode 10 buffers, 2 only here, first layer.4.k",
                "aux schema: prefill first_token:int64[], ",
            ):
                assert field in failure.there_is
            assert receiver.release_safe()
            sender.clear()
        pair.move(2, [1], [1])


@pytest.mark.parametrize("model", MODELS)
def test_decode_aborts_and_prefill_hears_of_it(model: TransferModel) -> None:
    with paired(config(model)) as pair:
        pair.move(1, [1], [1])
        sender, receiver = pair.open(2)
        sender.init(2)
        receiver.send_metadata([1, 2])
        sender.send([5])
        receiver.abort()
        assert receiver.poll() is KVPoll.FAILED
        assert sender.wait(soon()) is KVPoll.FAILED
        failure = sender.failure()
        assert failure is not None
        assert failure.code is FailureCode.ABORTED
        assert failure.happened == "decode aborted room 2"
        while not (receiver.release_safe() and sender.release_safe()):
            sender.wait(Deadline.after(0.01))
        sender.clear()
        receiver.clear()
        pair.move(2, [3, 4], [1, 2])


def test_prefill_aborts_and_decode_hears_of_it() -> None:
    with paired() as pair:
        sender, receiver = pair.open(2)
        sender.init(2)
        receiver.send_metadata([1, 2])
        sender.abort()
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.happened == "prefill aborted room 2"
        assert receiver.release_safe()
        assert sender.release_safe()


def test_a_request_for_a_room_that_prefill_gave_up_fails_at_once() -> None:
    with paired() as pair:
        pair.move(1, [1], [1])
        sender = pair.prefill.sender(RoomId(2))
        sender.abort()
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(2))
        receiver.init()
        receiver.send_metadata([1])
        assert receiver.wait(soon()) is KVPoll.FAILED
        assert receiver.release_safe()


def test_abort_before_anything_was_asked_is_safe_at_once() -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        for side in (sender, receiver):
            side.abort()
            assert side.poll() is KVPoll.FAILED
            assert side.release_safe()


def test_a_side_that_never_comes_ends_the_other_at_its_deadline() -> None:
    with paired() as pair:
        pair.move(1, [1], [1])
        sender = pair.prefill.sender(RoomId(2), Deadline.after(0.2))
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(3), Deadline.after(0.2))
        receiver.init()
        receiver.send_metadata([1])
        for side in (sender, receiver):
            assert side.wait(soon()) is KVPoll.FAILED
            failure = side.failure()
            assert failure is not None
            assert failure.code is FailureCode.DEADLINE
            assert failure.happened == f"room {side.room} missed its deadline"
        while not receiver.release_safe():
            pair.decode.finished(Deadline.after(0.01))


def test_prefill_ends_a_room_at_the_deadline_that_decode_set() -> None:
    with paired() as pair:
        sender = pair.prefill.sender(RoomId(1))
        sender.init(1)
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(1), Deadline.after(0.3))
        receiver.init()
        receiver.send_metadata([1])
        assert sender.wait(soon()) is KVPoll.FAILED
        assert receiver.wait(soon()) is KVPoll.FAILED


@pytest.mark.parametrize("aux", ["engine", "tcp"])
def test_an_aux_slot_that_was_given_away_fails_that_request_alone(aux: AuxName) -> None:
    with paired(config(aux=aux)) as pair:
        assert pair.prefill.pools.aux is not None
        sender, receiver = pair.open(1)
        sender.init(1, 0)
        with pytest.raises(KVTransferError, match="aux slot 0 does not hold the data of room 1"):
            sender.send([1])
        pair.prefill.pools.aux.set(0, RoomId(1), {"first_token": 1})
        sender.send([1])
        pair.prefill.pools.aux.set(0, RoomId(99), {"first_token": 99})
        receiver.send_metadata([1], 5)
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.AUX
        assert failure.there_is == "it holds the data of room 99"
        pair.move(2, [1], [1])


def test_closing_prefill_fails_the_rooms_of_decode_and_names_it() -> None:
    with paired() as pair:
        pair.move(1, [1], [1])
        _sender, receiver = pair.open(2)
        receiver.send_metadata([1])
        pair.prefill.close()
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code in (FailureCode.SHUTDOWN, FailureCode.PEER_LOST)
        while not receiver.release_safe():
            pair.decode.finished(Deadline.after(0.01))
        with pytest.raises(RoomError, match="the prefill manager is closed"):
            pair.prefill.sender(RoomId(3))
        pair.prefill.close()


def test_closing_decode_fails_the_rooms_of_prefill_and_another_decode_is_served() -> None:
    with paired() as pair:
        pair.move(1, [1], [1])
        sender, receiver = pair.open(2)
        sender.init(1)
        receiver.send_metadata([1])
        while sender.poll() is KVPoll.BOOTSTRAPPING:
            sender.wait(Deadline.after(0.01))
        pair.decode.close()
        assert receiver.release_safe()
        assert sender.wait(soon()) is KVPoll.FAILED
        assert sender.failure() is not None
        with DecodeManager(select("local"), pools(), Topology(), config()) as second:
            pair.decode = second
            pair.move(3, [4], [5])


def test_many_decode_workers_share_one_prefill() -> None:
    with paired() as pair:
        others = [DecodeManager(select("local"), pools(), Topology(), config()) for _ in range(3)]
        try:
            for round_ in range(3):
                for n, other in enumerate(others):
                    pair.decode = other
                    pair.move(10 * round_ + n, [n, round_], [round_, n + 3])
        finally:
            for other in others:
                other.close()


def test_a_prefill_that_is_nowhere_fails_the_request_with_the_address() -> None:
    with DecodeManager(select("local"), pools(), Topology(), config(request=0.5)) as decode:
        receiver = decode.receiver("127.0.0.1:9", RoomId(1))
        receiver.init()
        receiver.send_metadata([1])
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert "127.0.0.1:9" in failure.happened or failure.code is FailureCode.DEADLINE
        assert receiver.release_safe()


def test_a_prefill_without_its_bootstrap_service_does_not_start() -> None:
    with pytest.raises(BootstrapError, match=r"the bootstrap service at 127\.0\.0\.1:9 cannot be reached"):
        PrefillManager(select("local"), pools(), Topology(), "127.0.0.1:9", config(request=0.5))


def test_inline_is_refused_for_an_engine_that_copies_inside_write() -> None:
    with BootstrapServer() as bootstrap, pytest.raises(ConfigError) as caught:
        PrefillManager(select("local"), pools(), Topology(), bootstrap.address, config(TransferModel.INLINE))
    assert caught.value.problems[0].path == "transfer.model"
    assert "copies inside write(); use workers" in caught.value.problems[0].reason


def test_lanes_share_a_peer_without_mixing_rooms_up() -> None:
    with paired(config(lanes=3)) as pair:
        rooms = {room: pair.open(room) for room in range(30)}
        for room, (sender, receiver) in rooms.items():
            sender.init(2)
            receiver.send_metadata([2 * room, 2 * room + 1])
            sender.send([room])
            sender.send([63 - room])
        for room, (sender, receiver) in rooms.items():
            finish(sender, receiver)
            assert same_pages(
                pair.prefill.pools, [room, 63 - room], pair.decode.pools, [2 * room, 2 * room + 1]
            )


def test_a_lost_peer_pairs_again_with_its_next_request() -> None:
    with paired() as pair:
        pair.move(1, [1], [1])
        link = peers(pair.prefill)[0]
        # What a pause of the decode process longer than the heartbeats looks like to prefill.
        pair.prefill.channel.call(lambda: pair.prefill._lose(link.route, "a test"))
        while peers(pair.decode):
            pair.decode.finished(Deadline.after(0.01))
        fill(pair.prefill.pools, 2)
        pair.move(2, [3, 4], [5, 6])


def test_a_request_to_a_prefill_that_forgot_its_peer_fails_at_once_and_the_next_one_pairs() -> None:
    with paired(config(request=300.0, interval=30.0)) as pair:  # too rare to tell
        pair.move(1, [1], [1])
        (before,) = peers(pair.decode)
        route = peers(pair.prefill)[0].route
        pair.prefill.channel.call(lambda: pair.prefill._lose(route, "a test"))
        while peers(pair.prefill):  # what decode asks comes after that
            pair.prefill.finished(Deadline.after(0.01))
        sender, receiver = pair.open(2)
        receiver.send_metadata([5])
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.PEER_LOST
        # Decode's first heartbeat may be on its way at that moment, and is answered in its own words.
        assert "is not paired with who asked for room 2" in str(failure) or "doesn't know" in str(failure)
        while before in peers(pair.decode):
            pair.decode.finished(Deadline.after(0.01))
        pair.settle()
        pair.move(3, [3], [5])
        assert sender.wait(soon()) is KVPoll.FAILED
        assert str(sender.failure()) == str(failure)


def test_a_heartbeat_of_another_process_at_a_peers_address_loses_the_old_one_at_once() -> None:
    with paired(config(interval=30.0)) as pair:
        pair.move(1, [1], [1])
        _, receiver = pair.open(2)
        receiver.send_metadata([5])
        (source,) = peers(pair.decode)
        assert source is not None
        beat = Heartbeat(Incarnation("b" * 32))
        pair.decode.channel.call(lambda: pair.decode._hear(source.route, beat))
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.PEER_LOST
        assert failure.there_is == "incarnation bbbbbbbb runs there now"
        assert pair.decode.channel.counts["stale"] == 1
        pair.move(3, [3], [6])


def test_no_heartbeat_goes_to_who_has_not_answered_the_request_to_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()
    with paired(config(request=300.0, interval=30.0)) as pair:
        connect = pair.prefill.engine.do_connect

        def late(*args: object) -> object:
            assert answers.wait(30)
            return connect(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(pair.prefill.engine, "do_connect", late)
        beats: Heartbeats[Route] = Heartbeats(interval=1.0, max_failures=3)
        said: list[tuple[Route, Message]] = []
        pulse = attrs.evolve(
            pair.decode._pulse, heartbeats=beats, post=lambda route, message: said.append((route, message))
        )
        beat = Heartbeat(pair.decode.incarnation)
        try:
            sender, receiver = pair.open(1)
            receiver.send_metadata([5])
            until(lambda: bool(peers(pair.prefill)))  # it has the request to pair
            (route,) = pair.decode._peers()
            beats.track(route, 100.0, connected=True)
            pulse.beat(101.0, beat)
            assert not said
        finally:
            answers.set()
        sender.init(1)
        sender.send([3])
        finish(sender, receiver)
        pulse.beat(102.0, beat)
        assert said == [(route, beat)]


def test_heartbeats_reach_the_hook_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "observer_counts")
    observer = importlib.import_module("pd_observer_counts")
    observer.heard.clear()  # of managers of tests before
    observer.both.clear()
    with paired(config(interval=0.05)) as pair:
        pair.move(1, [1], [1])
        assert observer.both.wait(30)
        assert observer.heard[Role.PREFILL].incarnation == pair.prefill.incarnation
        assert observer.heard[Role.DECODE].incarnation == pair.decode.incarnation


@pytest.mark.parametrize("side", Role)
def test_a_control_thread_that_stands_still_costs_no_request(side: Role) -> None:
    with paired(config(interval=0.05, max_failures=6)) as pair:
        pair.move(1, [1], [1])
        sender, receiver = pair.open(2)
        sender.init(1)
        receiver.send_metadata([9])
        while sender.poll() is KVPoll.BOOTSTRAPPING:
            sender.wait(Deadline.after(0.01))
        still, other = (pair.prefill, pair.decode) if side is Role.PREFILL else (pair.decode, pair.prefill)
        hung = threading.Event()
        still.channel.call(lambda: void(hung.wait(30)))
        try:
            missed = Deadline.after(20 * 6 * 0.05)
            while not missed.expired:
                other.finished(missed)
            assert not sender.poll().terminal
            assert not receiver.poll().terminal
        finally:
            hung.set()
        sender.send([7])
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, [7], pair.decode.pools, [9])


def void(_: object) -> None:
    """Drop a result."""


def health(pair: Pair) -> int:
    connection = http.client.HTTPConnection(pair.bootstrap.address, timeout=30)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def test_health_turns_red_when_the_control_thread_is_stuck() -> None:
    with paired(config(interval=0.05, max_failures=6)) as pair:
        assert health(pair) == 200
        stuck = threading.Event()
        pair.prefill.channel.call(lambda: void(stuck.wait(30)))
        try:
            deadline = soon()
            while health(pair) == 200:
                assert not deadline.expired
        finally:
            stuck.set()
        while health(pair) != 200:
            assert not deadline.expired


def test_a_pool_can_be_handed_to_the_other_role() -> None:
    left, right = pools(), pools()
    with paired(source=left, target=right) as pair:
        pair.move(1, [1], [2])
    with paired(source=right, target=left) as pair:
        pair.move(1, [5], [6])


@pytest.mark.parametrize("model", MODELS)
def test_requests_leave_nothing_to_the_garbage_collector(model: TransferModel) -> None:
    with paired(config(model)) as pair:
        pair.move(1, [1], [1])
        gc.collect()
        gc.disable()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            for room in range(2, 12):
                pair.move(room, [room], [room])
            gc.collect()
            left = {type(it).__qualname__ for it in gc.garbage if type(it).__module__.startswith("pdcore")}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert left == set()
