"""What goes wrong only when two things happen at once, where threads, sockets and engines take part.

What one side's rules make of it is in ``tests/protocol/test_every_order.py``.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import attrs
import numpy as np
import pytest
from groups import Model, groups, ranks
from pair import Pair, config, early, fill, finish, paired, peers, pools, same_pages, soon, until

import pdcore.prefill.links
from pdcore import (
    AuxField,
    AuxSchema,
    BootstrapError,
    BootstrapServer,
    Config,
    ConfigError,
    ControlConfig,
    Deadline,
    DecodeManager,
    FailureCode,
    KVPoll,
    KVReceiver,
    KVSender,
    KVTransferError,
    PrefillManager,
    RoomError,
    RoomId,
    Topology,
    TransferModel,
    select,
)
from pdcore.bootstrap import BootstrapClient, RankRecord
from pdcore.contract.budget import EntryBudget
from pdcore.contract.engine import TransferEngine
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.events import Event, MetadataReceived, MetadataSent
from pdcore.model import Incarnation
from pdcore.prefill.lanes.engine_transfer import GuardedTransfer


def limited(cfg: Config, **seconds: float) -> Config:
    """Return a configuration with other timeouts."""
    return attrs.evolve(cfg, timeouts=attrs.evolve(cfg.timeouts, **seconds))


def threads(part: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if part in thread.name]


class Gate:
    """Where a thread is held until the test lets it go."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def hold(self) -> None:
        self.reached.set()
        assert self.open.wait(30)

    def at(self, kind: type[MetadataSent | MetadataReceived], room: int) -> Callable[[Event], None]:
        """Return a subscriber that holds who tells such an event of a room."""

        def hear(event: Event) -> None:
            if isinstance(event, kind) and event.room == room:
                self.hold()

        return hear

    @contextmanager
    def holding(self, action: Callable[[], object]) -> Iterator[None]:
        """Run an action on a thread of its own, up to where it is held; let it go after the block."""
        thread = threading.Thread(target=action)
        thread.start()
        assert self.reached.wait(30)
        try:
            yield
        finally:
            self.open.set()
            thread.join()


class Hung(Transfer):
    """A transfer that never ends."""

    def poll(self) -> TransferState:
        return TransferState.PENDING

    def wait(self, deadline: Deadline) -> TransferState:
        time.sleep(deadline.remaining())
        return TransferState.PENDING

    quiescence = Quiescence.IN_FLIGHT


class Raising(Transfer):
    """A transfer of an adapter that raises whatever it is asked."""

    def poll(self) -> TransferState:
        raise ZeroDivisionError("poll")

    def wait(self, deadline: Deadline) -> TransferState:
        raise ZeroDivisionError("wait")

    @property
    def quiescence(self) -> Quiescence:
        raise ZeroDivisionError("quiescence")


def writes_become(kind: type[Transfer], pair: Pair, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have prefill's engine return such a transfer for each write; return what is set by the first."""
    written = threading.Event()

    def write(*given: object) -> Transfer:
        written.set()
        return kind()

    monkeypatch.setattr(pair.prefill.engine, "do_write", write)
    return written


def failed(handle: KVSender | KVReceiver) -> KVTransferError:
    """Wait until a room has failed, and return why."""
    assert handle.wait(soon()) is KVPoll.FAILED
    failure = handle.failure()
    assert failure is not None
    return failure


def lose(pair: Pair) -> None:
    """Have decode lose its only prefill rank."""
    (source,) = peers(pair.decode)
    pair.decode.channel.call(partial(pair.decode._lose, source.route, "as if heartbeats were missing"))
    until(lambda: source.lost)


# --- bytes and pages ------------------------------------------------------------------------


def test_an_abort_never_overtakes_its_request() -> None:
    gate = Gate()
    with paired(subscribers=[gate.at(MetadataSent, 2)]) as pair:
        pair.move(1, [0], [0])
        sender, receiver = pair.open(2)
        sender.init(1)
        sender.send([1])
        with gate.holding(lambda: receiver.send_metadata([3])):
            receiver.abort()
            time.sleep(0.2)
            assert not receiver.release_safe()
        until(receiver.release_safe)
        before = [array[3].copy() for array in pair.decode.pools.arrays]
        time.sleep(0.2)
        assert all(np.array_equal(a, b[3]) for a, b in zip(before, pair.decode.pools.arrays, strict=True))


def test_no_chunk_goes_out_before_both_sides_agree() -> None:
    gate = Gate()
    with paired(subscribers=[gate.at(MetadataReceived, 2)]) as pair:
        sender, receiver = pair.open(2)
        sender.init(1)
        with gate.holding(lambda: receiver.send_metadata([3, 4])):
            sender.send([1])
        for handle in (sender, receiver):
            assert failed(handle).code is FailureCode.PLAN


def test_pages_of_a_peer_that_pairs_again_come_back_though_the_engine_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with paired() as pair:
        pair.move(1, [0], [0])
        monkeypatch.setattr(pair.decode.engine, "revoke", lambda *given: Quiescence.UNKNOWN)
        sender, receiver = pair.open(2)
        sender.init(1, 0)
        receiver.send_metadata([2], 0)
        until(lambda: sender.poll() is KVPoll.WAITING_FOR_INPUT)
        lose(pair)
        assert receiver.wait(soon()) is KVPoll.FAILED
        assert not receiver.release_safe()
        receiver.clear()
        assert len(pair.decode.driver.handles) == 1
        pair.move(3, [1], [1], 1)
        until(receiver.release_safe)
        until(lambda: not pair.decode.driver.handles)
        [warned] = [r.getMessage() for r in caplog.records if "may still write" in r.getMessage()]
        assert pair.prefill.address in warned


def test_a_revocation_that_raises_proves_nothing_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*given: object) -> Quiescence:
        raise OSError(24, "Too many open files")

    with paired() as pair:
        pair.move(1, [0], [0])
        monkeypatch.setattr(pair.decode.engine, "revoke", raises)
        lose(pair)
        until(lambda: "Too many open files" in caplog.text)
        assert "the engine raised while revoking" in caplog.text
        pair.move(2, [1], [1])


def test_another_process_at_a_peers_address_says_nothing_of_what_the_peer_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = config(interval=1.0)
    with paired(cfg) as pair:
        writes_become(Hung, pair, monkeypatch)
        monkeypatch.setattr(pair.decode.engine, "revoke", lambda *given: Quiescence.IN_FLIGHT)
        sender, receiver = pair.open(1)
        sender.init(1)
        sender.send([0])
        receiver.send_metadata([0])
        until(lambda: sender.poll() is KVPoll.TRANSFERRING)
        pair.prefill.channel.close(soon())
        control = ControlConfig(port=int(pair.prefill.address.rpartition(":")[2]))
        with PrefillManager(
            select("local"), pools(), Topology(), pair.bootstrap.address, attrs.evolve(cfg, control=control)
        ):
            receiver.abort()
            until(
                lambda: (
                    pair.prefill.incarnation not in {peer.identity.incarnation for peer in peers(pair.decode)}
                )
            )
            time.sleep(0.2)
            assert not receiver.release_safe()


def test_an_answer_of_another_process_is_not_taken_for_the_peers() -> None:
    with paired() as pair, BootstrapServer() as wrong:
        client = BootstrapClient("test")
        record = RankRecord(Incarnation("ab" * 16), pair.prefill.address, Topology(), 60.0)
        client.register(wrong.address, record, soon())
        client.close(soon())
        receiver = pair.decode.receiver(wrong.address, RoomId(1))
        receiver.init()
        receiver.send_metadata([0])
        failure = failed(receiver)
        assert failure.there_is == f"incarnation {pair.prefill.incarnation[:8]} runs there now"


def test_a_row_that_another_rank_fills_than_the_one_that_sends_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = AuxSchema((AuxField("a", "int64"), AuxField("b", "int64", writer_rank=1)))
    monkeypatch.setattr("groups.SCHEMA", schema)
    with groups(Model(), ranks(tp=2), ranks()) as both:
        _, (receiver,) = both.open(1)
        failure = failed(receiver)
        assert failure.code is FailureCode.INCOMPATIBLE
        assert "aux field 'b': prefill the row comes from rank 0" in failure.there_is
        assert "rank 1 fills it" in failure.there_is


def test_a_rank_whose_row_never_travels_needs_none() -> None:
    with groups(Model(), ranks(tp=2), ranks()) as both:
        senders, (receiver,) = both.open(1)
        rows = both.prefill[0].pools.aux
        assert rows is not None
        rows.set(3, RoomId(1), {"first_token": 7})
        for sender, slot in zip(senders, (3, None), strict=True):
            sender.init(1, slot)
            sender.send([0])
        receiver.send_metadata([0], 4)
        for handle in (receiver, *senders):
            assert handle.wait(soon()) is KVPoll.SUCCESS, handle.failure()


# --- rooms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_rooms_that_are_opened_while_their_manager_closes_end_or_are_refused(side: str) -> None:
    opened, many = list[KVSender | KVReceiver](), threading.Event()
    with paired() as pair:
        manager = pair.prefill if side == "prefill" else pair.decode

        def open_many(first: int) -> None:
            for room in itertools.count(first, 4):
                try:
                    opened.append(
                        pair.prefill.sender(RoomId(room))
                        if side == "prefill"
                        else pair.decode.receiver(pair.bootstrap.address, RoomId(room))
                    )
                except RoomError:
                    return
                if len(opened) > 100:
                    many.set()

        threads = [threading.Thread(target=open_many, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        assert many.wait(30)
        manager.close()
        for thread in threads:
            thread.join(30)
        for handle in opened:
            assert failed(handle).code is FailureCode.SHUTDOWN
            assert handle.release_safe()


def test_a_room_id_is_used_again_though_prefill_has_not_cleared_its_earlier_life() -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        sender.init(1)
        sender.send([0])
        receiver.send_metadata([0])
        assert receiver.wait(soon()) is sender.wait(soon()) is KVPoll.SUCCESS
        for outcome in (KVPoll.FAILED, KVPoll.SUCCESS):
            receiver.clear()
            receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(1))
            receiver.init()
            receiver.send_metadata([1])
            until(lambda: early(pair.prefill))
            sender.clear()
            sender = pair.prefill.sender(RoomId(1))
            sender.init(1)
            if outcome is KVPoll.FAILED:
                until(lambda: sender.poll() is KVPoll.WAITING_FOR_INPUT)  # noqa: B023 - called at once
                receiver.abort()
            else:
                sender.send([1])
            assert receiver.wait(soon()) is sender.wait(soon()) is outcome
            until(receiver.release_safe)
        assert same_pages(pair.prefill.pools, [1], pair.decode.pools, [1])


def test_the_next_life_of_a_room_that_prefill_refused_waits_for_prefill() -> None:
    with paired() as pair:
        sender = pair.prefill.sender(RoomId(2))
        sender.abort()
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(2))
        receiver.init()
        receiver.send_metadata([1])
        assert receiver.wait(soon()) is KVPoll.FAILED
        receiver.clear()
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(2))
        receiver.init()
        receiver.send_metadata([1])
        until(lambda: early(pair.prefill))
        sender.clear()
        sender = pair.prefill.sender(RoomId(2))
        sender.init(1)
        sender.send([1])
        finish(sender, receiver)


def test_prefill_gets_what_is_left_of_the_deadline_when_the_request_goes_out() -> None:
    with (
        BootstrapServer() as bootstrap,
        DecodeManager(select("local"), pools(), Topology(), config()) as decode,
    ):
        receiver = decode.receiver(bootstrap.address, RoomId(1), Deadline.after(8))
        receiver.init()
        receiver.send_metadata([0])
        time.sleep(1.5)
        with PrefillManager(select("local"), pools(), Topology(), bootstrap.address, config()) as prefill:
            until(lambda: early(prefill))
            (destination,) = prefill.driver.look(lambda machine: machine.answers.early.of(RoomId(1)))
            assert destination.wanted.remaining < 7
            receiver.abort()


# --- engines that hang or raise -------------------------------------------------------------


def test_a_transfer_that_hangs_holds_its_lane_no_longer_than_its_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with paired() as pair:
        pair.move(1, [0], [0])
        with monkeypatch.context() as patch:
            written = writes_become(Hung, pair, patch)
            sender, receiver = pair.open(2)
            sender.init(1)
            receiver.send_metadata([2])
            sender.send([1])
            assert written.wait(30)
        receiver.abort()
        assert sender.wait(soon()) is KVPoll.FAILED
        pair.move(3, [1], [3])
        until(lambda: len(pair.prefill.quarantine) == 1)
        assert not sender.release_safe()


def test_an_inline_wait_ends_with_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with paired(config(TransferModel.INLINE)) as pair:
        pair.move(1, [0], [0])
        writes_become(Hung, pair, monkeypatch)
        sender, receiver = pair.open(2)
        sender.init(1)
        receiver.send_metadata([2])
        until(lambda: sender.poll() is KVPoll.WAITING_FOR_INPUT)
        sender.send([1])
        threading.Timer(0.2, receiver.abort).start()
        deadline = soon()
        assert sender.wait(deadline) is KVPoll.FAILED
        assert not deadline.expired


@pytest.mark.parametrize("model", TransferModel)
def test_a_transfer_that_raises_fails_its_room_and_keeps_its_pages_until_the_engine_is_closed(
    model: TransferModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with paired(config(model)) as pair:
        pair.move(1, [0], [0])
        with monkeypatch.context() as patch:
            writes_become(Raising, pair, patch)
            sender, receiver = pair.open(2)
            sender.init(1)
            receiver.send_metadata([2])
            until(lambda: sender.poll() is KVPoll.WAITING_FOR_INPUT)
            sender.send([1])
            failure = failed(sender)
        assert failure.code is FailureCode.ENGINE
        assert "ZeroDivisionError" in failure.there_is
        assert "the engine raised while it was asked about a transfer" in caplog.text
        pair.move(3, [1], [3])
        assert not sender.release_safe()
        pair.prefill.close()
        assert sender.release_safe()


class Empty(Hung):
    """A transfer that happens to be false."""

    def __len__(self) -> int:
        return 0


def test_a_transfer_is_watched_whatever_its_truth() -> None:
    watched = GuardedTransfer(Empty(), lambda: None)
    assert watched.poll() is TransferState.PENDING
    assert watched.quiescence is Quiescence.IN_FLIGHT


def test_a_transfer_that_raises_in_quarantine_gives_its_budget_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with paired() as pair:
        pair.move(1, [0], [0])
        (link,) = pair.prefill._links._links.values()
        link.budget = budget = EntryBudget(64)
        hung = Hung()
        with monkeypatch.context() as patch:
            patch.setattr(pair.prefill.engine, "do_write", lambda peer, batch: hung)
            sender, receiver = pair.open(2)
            sender.init(1)
            receiver.send_metadata([2])
            sender.send([1])
            until(lambda: not budget.wait(64, Deadline.after(0.001)))
            receiver.abort()
            until(lambda: len(pair.prefill.quarantine) == 1)
            assert not budget.wait(64, Deadline.after(0.001))
            patch.setattr(Hung, "poll", Raising.poll)
            until(lambda: budget.wait(64, Deadline.after(0.001)))
        pair.move(3, [1], [3])


# --- ends -----------------------------------------------------------------------------------


def test_a_manager_ends_although_its_bootstrap_service_does_not_answer() -> None:
    cfg = limited(config(), shutdown=0.5, bootstrap=0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BootstrapError, match="cannot be reached"):
            PrefillManager(select("local"), pools(), Topology(), address, cfg)
    assert not threads("pdcore-prefill")


def test_a_manager_whose_engine_takes_all_the_time_to_close_still_says_goodbye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = limited(config(), shutdown=0.3)
    with paired(cfg) as pair:
        pair.move(1, [0], [0])
        for manager in (pair.prefill, pair.decode):
            real = manager.engine.close

            def slow(real: Callable[[], None] = real) -> None:
                time.sleep(0.5)
                real()

            monkeypatch.setattr(manager.engine, "close", slow)
        pair.prefill.close()
        until(lambda: not peers(pair.decode))
        pair.decode.close()
        assert not threads("control")
        assert not threads("decode-http")
        assert not threads("prefill-http")


def test_a_rank_that_left_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    with paired(config(interval=0.05)) as pair:
        real = pair.prefill._registration._client.withdraw

        def slow(*given: object) -> None:
            real(*given)  # type: ignore[arg-type]  # passed through
            time.sleep(0.4)  # the control thread ticks meanwhile

        monkeypatch.setattr(pair.prefill._registration._client, "withdraw", slow)
        pair.prefill.close()
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(1), Deadline.after(0.5))
        receiver.init()
        assert receiver.wait(soon()) is KVPoll.FAILED
        assert receiver.record.group is not None
        assert not receiver.record.group.members


def test_a_peer_that_asks_while_the_manager_closes_leaves_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    link = pdcore.prefill.links.PeerLink  # type: ignore[attr-defined]  # imported there

    def held(*given: object) -> object:
        gate.hold()
        return link(*given)  # type: ignore[arg-type]  # passed through

    with paired() as pair:
        monkeypatch.setattr("pdcore.prefill.links.PeerLink", held)
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(1))
        with gate.holding(receiver.init):
            threading.Timer(0.3, gate.open.set).start()
            pair.prefill.close()
        assert not threads("pdcore-lane")


def test_peers_that_come_and_go_leave_nothing_behind_at_decode() -> None:
    with DecodeManager(select("local"), pools(), Topology(), config()) as decode:
        for room in range(3):
            memory = pools()
            fill(memory, room)
            with (
                BootstrapServer() as bootstrap,
                PrefillManager(select("local"), memory, Topology(), bootstrap.address, config()) as prefill,
            ):
                Pair(bootstrap, prefill, decode).move(room, [1], [1])
            until(lambda: not peers(decode))
        until(lambda: not decode.driver.look(lambda machine: machine.peers.groups))
        assert not decode._lookup._dp_sizes


def test_a_peer_that_is_lost_while_it_is_admitted_may_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    revoked, gate = list[bytes](), Gate()
    with paired() as pair:
        engine = pair.decode.engine
        admit, revoke = engine.admit, engine.revoke

        def held(endpoint: bytes) -> None:
            admit(endpoint)
            gate.hold()

        def seen(endpoint: bytes, deadline: Deadline) -> Quiescence:
            revoked.append(endpoint)
            return revoke(endpoint, deadline)

        monkeypatch.setattr(engine, "admit", held)
        monkeypatch.setattr(engine, "revoke", seen)
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(1))
        with gate.holding(receiver.init):
            lose(pair)
            assert not revoked
        until(lambda: revoked)
        assert revoked == [pair.prefill.engine.endpoint()]


def test_nobody_is_admitted_to_an_engine_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted = list[bool]()
    with paired() as pair:
        engine: TransferEngine = pair.decode.engine
        admit = engine.admit

        def slow(endpoint: bytes) -> None:
            time.sleep(0.4)
            admitted.append(engine._closed)
            admit(endpoint)

        monkeypatch.setattr(engine, "admit", slow)
        pair.decode.receiver(pair.bootstrap.address, RoomId(1)).init()
        until(lambda: threads("pdcore-admit"))
        pair.decode.close()
        assert not threads("pdcore-admit")
    assert admitted == [False]


def test_a_host_that_is_no_address_is_refused_before_anything_starts() -> None:
    for host in ("", "a b", "tcp://h", "h:1"):
        with pytest.raises(ConfigError, match="must be a name or an address of this machine"):
            Config(host=host)
    for host in ("*", "0.0.0.0", "node-7.example", "::1", "[fe80::1%eth0]"):
        assert Config(host=host).host == host


def test_an_address_that_nobody_can_dial_is_refused_at_registration() -> None:
    with BootstrapServer() as bootstrap:
        client = BootstrapClient("test")
        try:
            for address in ("nonsense", "host:", "host:99999999", "a b:1", "tcp://host:1"):
                record = attrs.evolve(RankRecord(Incarnation("ab" * 16), "h:1", Topology(), 60.0))
                object.__setattr__(record, "address", address)
                with pytest.raises(BootstrapError, match="a rank registration is malformed") as caught:
                    client.register(bootstrap.address, record, soon())
                assert "address" in caught.value.there_is
            for address in ("10.0.0.1:1", "node-7.example:65535", "[::1]:80"):
                client.register(
                    bootstrap.address, RankRecord(Incarnation("ab" * 16), address, Topology(), 60.0), soon()
                )
        finally:
            client.close(soon())


def test_pages_come_back_of_rooms_whose_engine_raises_while_they_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raising(rooms: int) -> None:
        if rooms == 1:  # a room asks; the control thread tells of all that wait, which are more
            raise ZeroDivisionError(rooms)

    with paired() as pair:
        receivers = [pair.decode.receiver(pair.bootstrap.address, RoomId(n), soon()) for n in (2, 3, 4)]
        with monkeypatch.context() as patch:
            patch.setattr(pair.decode.engine, "expect", raising)
            for n, receiver in enumerate(receivers[:2]):
                receiver.init()
                receiver.send_metadata([n], None)  # they ask once they are paired
            codes = [failed(receiver).code for receiver in receivers[:2]]
            receivers[2].init()
            receivers[2].send_metadata([3], None)
            codes.append(failed(receivers[2]).code)
        assert codes == 3 * [FailureCode.ENGINE]
        for receiver in receivers:
            until(receiver.release_safe)
            receiver.clear()
        pair.move(1, [0], [0])
