"""What cannot be said, or raises, ends the room on both sides at once; all deadlines are 300 s."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import attrs
import numpy as np
import pytest
from pair import SCHEMA, Pair, config, early, fill, finish, paired, peers, pools, soon, until

from pdcore import (
    AuxField,
    AuxSchema,
    BootstrapServer,
    Config,
    ControlConfig,
    DecodeManager,
    FailureCode,
    KVLayout,
    KVPoll,
    KVReceiver,
    KVSender,
    KVTransferError,
    PrefillManager,
    RoomId,
    Topology,
    select,
)
from pdcore.protocol.send.meeting import Meeting
from pdcore.testing.faults import Decision, Fault, Schedule
from pdcore.testing.faults.managers import FaultyDecode, FaultyPrefill
from pdcore.wire import Connection, ConnectionEvent, Failure

MANY = KVLayout.heads(layers=[0], kv_heads=1, head_dim=4, page_size=1, num_pages=1024)
SMALL = 4096


def limited(nbytes: int | None, cfg: Config) -> Config:
    return cfg if nbytes is None else attrs.evolve(cfg, control=ControlConfig(max_message_bytes=nbytes))


@contextmanager
def limits(
    prefill: int | None,
    decode: int | None,
    layout: KVLayout = MANY,
    schema: AuxSchema = SCHEMA,
    cfg: Config | None = None,
) -> Iterator[Pair]:
    """Two managers that take messages of so many bytes."""
    cfg, chosen = cfg or config(request=300.0), select("local")
    source = pools(layout, schema)
    fill(source, 1)
    with ExitStack() as stack:
        address = stack.enter_context(BootstrapServer())
        left = PrefillManager(chosen, source, Topology(), address.address, limited(prefill, cfg))
        stack.enter_context(left)
        right = DecodeManager(chosen, pools(layout, schema), Topology(), limited(decode, cfg))
        yield Pair(address, left, stack.enter_context(right))


def failed(handle: KVSender | KVReceiver) -> KVTransferError:
    assert handle.wait(soon()) is KVPoll.FAILED
    failure = handle.failure()
    assert failure is not None
    return failure


@pytest.mark.parametrize("limit", [(SMALL, None), (None, SMALL), (SMALL, SMALL)])
@pytest.mark.parametrize("was_paired", [True, False])
def test_a_request_that_fits_no_message_fails_at_once_on_both_sides(
    was_paired: bool, limit: tuple[int | None, int | None]
) -> None:
    with limits(*limit) as pair:
        if was_paired:
            pair.move(1, [0], [0])
        sender, receiver = pair.open(2)
        sender.init(1000)
        receiver.send_metadata(range(1000))
        for handle in (receiver, sender):
            failure = failed(handle)
            assert failure.code is FailureCode.PLAN
            assert failure.happened == "the list of 1000 pages of room 2 does not fit a control message"
            assert failure.there_is.endswith(f" bytes, and both sides take {SMALL}")
            assert "raise control.max_message_bytes" in failure.to_do
        until(lambda: sender.release_safe() and receiver.release_safe())
        pair.move(3, range(300), range(300))


@pytest.mark.parametrize("limit", [(SMALL, None), (None, SMALL)])
def test_an_aux_row_that_fits_no_message_fails_at_once_on_both_sides(
    limit: tuple[int | None, int | None],
) -> None:
    schema = AuxSchema((AuxField("first_token", "int64"), AuxField("hidden", "uint8", (SMALL,))))
    with limits(*limit, schema=schema, cfg=config(aux="tcp", request=300.0)) as pair:
        sender, receiver = pair.open(2)
        assert pair.prefill.pools.aux is not None
        pair.prefill.pools.aux.set(0, RoomId(2), {"first_token": 1})
        sender.init(1, 0)
        receiver.send_metadata([1], 0)
        sender.send([1])
        for handle in (sender, receiver):
            failure = failed(handle)
            assert failure.code is FailureCode.AUX
            assert failure.happened == "the aux row of room 2 does not fit a control message"
        pair.move(3, [2], [2], aux_slot=None)


def test_digests_come_in_parts_that_fit_a_message() -> None:
    cfg = config(request=300.0)
    cfg = attrs.evolve(cfg, transfer=attrs.evolve(cfg.transfer, verify="all"))
    with limits(SMALL, None, cfg=cfg) as pair:
        scattered = np.random.default_rng(0).permutation(1024)[:300].tolist()
        pair.move(2, scattered, sorted(scattered, reverse=True))
        assert not pair.prefill.channel.counts["undeliverable"]


def test_who_cannot_be_described_in_a_message_is_told_at_once() -> None:
    deep = KVLayout.heads(layers=range(200), kv_heads=1, head_dim=4, page_size=1, num_pages=4)
    with limits(None, SMALL, deep) as pair:
        _, receiver = pair.open(2)
        failure = failed(receiver)
        assert failure.code is FailureCode.INCOMPATIBLE
        assert "what describes this side does not fit a control message" in failure.happened


def test_texts_of_a_failure_fit_the_smallest_message() -> None:
    long = "ä" * 10_000
    failure = Failure.of(KVTransferError(FailureCode.ENGINE, long, long, "short"))
    assert failure.happened.endswith("ä...")
    assert len(failure.happened.encode()) <= 1_000
    assert failure.to_do == "short"


# --- what raises ----------------------------------------------------------------------------


def raises(*given: object, **more: object) -> object:
    raise ZeroDivisionError("somebody's code")


@pytest.mark.parametrize("prefill_first", [True, False])
def test_a_room_that_cannot_take_a_request_fails_on_both_sides(
    prefill_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paired(config(request=300.0)) as pair:
        pair.move(1, [0], [0])
        monkeypatch.setattr(Meeting, "_accept", raises)
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(2))
        receiver.init()
        if prefill_first:
            sender = pair.prefill.sender(RoomId(2))
            receiver.send_metadata([1])
        else:
            receiver.send_metadata([1])
            until(lambda: early(pair.prefill))
            sender = pair.prefill.sender(RoomId(2))
        for handle in (sender, receiver):
            failure = failed(handle)
            assert failure.code is FailureCode.ENGINE
            assert failure.happened == ("something raised on the prefill side while it worked on room 2")
            assert "somebody's code" in failure.there_is
        until(receiver.release_safe)
        monkeypatch.undo()
        pair.move(3, [2], [2])


def test_a_room_whose_end_cannot_be_told_fails_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    with paired(config(aux="tcp", request=300.0)) as pair:
        pair.move(1, [0], [0])
        monkeypatch.setattr(pair.prefill._codec, "encode", raises)
        sender, receiver = pair.open(2)
        assert pair.prefill.pools.aux is not None
        pair.prefill.pools.aux.set(0, RoomId(2), {"first_token": 2})
        sender.init(1, 0)
        receiver.send_metadata([1], 0)
        sender.send([1])
        for handle in (sender, receiver):
            assert failed(handle).code is FailureCode.ENGINE
        monkeypatch.undo()
        pair.move(3, [2], [2])


def test_an_aux_row_that_was_given_away_before_it_was_sent_fails_the_room_on_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with paired(config(aux="tcp", request=300.0)) as pair:
        rows = pair.prefill.pools.aux
        assert rows is not None
        pair.move(1, [0], [0])
        codec = pair.prefill._codec
        assert codec is not None
        real = codec.encode

        def gives_the_slot_away(slot: int) -> bytes:
            rows.set(3, RoomId(77), {"first_token": 1})
            return real(slot)

        monkeypatch.setattr(codec, "encode", gives_the_slot_away)
        sender, receiver = pair.open(2)
        rows.set(3, RoomId(2), {"first_token": 1})
        sender.init(1, 3)
        receiver.send_metadata([1], 3)
        sender.send([1])
        assert failed(receiver).code is FailureCode.AUX


def test_a_receiver_that_cannot_take_an_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with paired(config(aux="tcp", request=300.0)) as pair:
        pair.move(1, [0], [0])
        monkeypatch.setattr(pair.decode._codec, "decode", raises)
        sender, receiver = pair.open(2)
        assert pair.prefill.pools.aux is not None
        pair.prefill.pools.aux.set(0, RoomId(2), {"first_token": 1})
        sender.init(1, 0)
        receiver.send_metadata([1], 0)
        sender.send([1])
        assert failed(receiver).happened == "something raised on the decode side while it worked on room 2"
        sender.wait(soon())
        monkeypatch.undo()
        sender.clear()
        receiver.clear()
        finish(*_moved(pair))


def _moved(pair: Pair) -> tuple[KVSender, KVReceiver]:
    sender, receiver = pair.open(3)
    sender.init(1)
    receiver.send_metadata([5])
    sender.send([5])
    return sender, receiver


# --- connections that break -----------------------------------------------------------------


class LosesOne(Schedule):
    """One message of a kind is lost, as if it was under way when its connection ended."""

    def __init__(self, place: str) -> None:
        super().__init__(0)
        self.lost, self._place = threading.Event(), place

    def _decide(self, place: str, faults: object) -> Decision:
        if place != self._place or self.lost.is_set():
            return Decision(Fault.NONE)
        self.lost.set()
        return Decision(Fault.DROP)


@contextmanager
def losing(what: str) -> Iterator[tuple[LosesOne, Pair]]:
    schedule, cfg, source = LosesOne(what), config(request=300.0, interval=30.0), pools()
    fill(source, 1)
    with ExitStack() as stack:
        bootstrap = stack.enter_context(BootstrapServer())
        prefill = FaultyPrefill(schedule, select("local"), source, bootstrap.address, cfg)
        stack.enter_context(prefill)
        decode = stack.enter_context(FaultyDecode(schedule, select("local"), pools(), cfg))
        yield schedule, Pair(bootstrap, prefill, decode)


def connected_again(pair: Pair) -> None:
    (source,) = peers(pair.decode)
    event = ConnectionEvent(Connection.HANDSHAKEN, 0, "")
    pair.decode.channel.call(lambda: pair.decode._on_connection(source.route, event))


@pytest.mark.parametrize("is_cleared", [True, False])
@pytest.mark.parametrize("outcome", [KVPoll.SUCCESS, KVPoll.FAILED])
def test_how_a_room_ended_is_asked_for_again_when_the_connection_is_back(
    outcome: KVPoll, is_cleared: bool
) -> None:
    with losing("prefill RoomStatus") as (schedule, pair):
        sender, receiver = pair.open(2)
        sender.init(1)
        receiver.send_metadata([1])
        until(lambda: sender.record.complete)
        sender.send([1]) if outcome is KVPoll.SUCCESS else sender.abort()
        assert schedule.lost.wait(30)
        assert sender.wait(soon()) is outcome
        if is_cleared:
            sender.clear()
        assert receiver.poll() is KVPoll.TRANSFERRING
        connected_again(pair)
        assert receiver.wait(soon()) is outcome
        until(receiver.release_safe)


def test_a_request_that_was_lost_with_its_connection_fails_when_it_is_back() -> None:
    with losing("decode RequestMetadata") as (schedule, pair):
        sender, receiver = pair.open(2)
        receiver.send_metadata([1])
        assert schedule.lost.wait(30)
        connected_again(pair)
        failure = failed(receiver)
        assert failure.code is FailureCode.PEER_LOST
        assert failure.happened == "prefill does not know the request of room 2"
        until(receiver.release_safe)
        sender.clear()
