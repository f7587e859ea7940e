"""Messages of strangers, of paired peers gone mad, and of forgers; a healthy pair is served meanwhile."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import attrs
import msgspec
import numpy as np
import pytest
from nasty import HostileSocket, broken_frames
from pair import Pair, config, early, fill, finish, paired, peers, pools, same_pages, soon
from wire_samples import SAMPLES

from pdcore import (
    BootstrapServer,
    Deadline,
    DecodeManager,
    FailureCode,
    KVPoll,
    PrefillManager,
    RoomId,
    Topology,
    select,
)
from pdcore.managers.manager import Manager
from pdcore.model import Generation, Incarnation
from pdcore.pairing.description import PeerDescription
from pdcore.wire import (
    Abort,
    AuxRow,
    Bye,
    Codec,
    Failure,
    Message,
    PairReply,
    PairRequest,
    Released,
    RequestMetadata,
    RoomStatus,
    Route,
)
from pdcore.wire.complaints import Complaints

MISCHIEF = Failure(FailureCode.ABORTED, "mischief", "", "")


def all_heard(stranger: HostileSocket) -> None:
    """Wait until prefill has answered a question that comes after all the rest.

    Who is paired is answered when it gives a room up, who is not, when it asks for one.
    """
    last, pages = RoomId(4_242), np.zeros(1, np.int64)
    for question in (
        RequestMetadata(last, Generation(1), pages, None, (), 0, 30.0),
        Abort(last, Generation(1), MISCHIEF),
    ):
        stranger.say([bytes(frame) for frame in Codec.encode(question)])
    stranger.hear_of(last)


def say(manager: Manager, route: Route, frames: list[bytes]) -> None:
    """Have a manager's own channel send anything to a peer."""
    manager.channel._send(route, list(frames))


def all_said(manager: Manager) -> None:
    """Wait until what a manager was to send is sent, by this thread or by its control thread."""
    done = threading.Event()
    manager.channel.call(done.set)
    assert done.wait(30)


@contextmanager
def mad_decode(pair: Pair) -> Iterator[DecodeManager]:
    """A second decode, paired with prefill by one good request."""
    with DecodeManager(select("local"), pools(), Topology(), config()) as mad:
        Pair(pair.bootstrap, pair.prefill, mad).move(7_000, [1], [1])
        yield mad


@contextmanager
def mad_prefill(pair: Pair) -> Iterator[tuple[PrefillManager, Callable[[int], None]]]:
    """A second prefill with the same decode, and what moves another good request, pairing if need be."""
    memory = pools()
    fill(memory, 9)
    with (
        BootstrapServer() as bootstrap,
        PrefillManager(select("local"), memory, Topology(), bootstrap.address, config()) as mad,
    ):
        mine = Pair(bootstrap, mad, pair.decode)
        mine.move(7_000, [1], [1])
        yield mad, lambda room: mine.move(room, [1], [1])


def only_route(manager: Manager) -> Route:
    (route,) = manager._peers()
    return route


def knows(decode: DecodeManager, prefill: PrefillManager) -> bool:
    """Whether decode is paired, or pairing, with whoever it takes for this prefill."""
    return prefill.address in {peer.address for peer in decode._peers().values()}


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_that_a_stranger_says_disturbs_prefill(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with paired() as pair:
        pair.move(1, [1], [1])
        stranger = HostileSocket(pair.prefill.address, b"stranger")
        for frames in broken_frames(SAMPLES[name]):
            stranger.say(frames)
        pair.move(2, [3, 4, 5], [6, 7, 8])
        all_heard(stranger)
        pair.move(3, [9], [10])
        stranger.close()
        counts = pair.prefill.channel.counts
        assert counts["malformed"] > 50
        assert counts["errors"] == 0, caplog.text
        about = [r for r in caplog.records if "malformed message, peer stranger" in r.getMessage()]
        assert len(about) == 1


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_that_a_paired_decode_says_disturbs_prefill_or_another_decode(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with paired() as pair, mad_decode(pair) as mad:
        paired_one = HostileSocket(pair.prefill.address, b"mad decode")
        mad.engine.admit(pair.prefill.engine.endpoint())
        request = PairRequest(mad.describe("mad decode"))
        paired_one.say(list(map(bytes, Codec.encode(request))))
        paired_one.hear_until(PairReply)
        for frames in broken_frames(SAMPLES[name]):
            paired_one.say(frames)
        pair.move(2, [3, 4, 5], [6, 7, 8])
        all_heard(paired_one)
        pair.move(3, [9], [10])
        paired_one.close()
        counts = pair.prefill.channel.counts
        assert counts["malformed"] > 50
        assert counts["errors"] == 0, caplog.text


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_that_a_paired_prefill_says_disturbs_decode_or_another_prefill(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with paired() as pair, mad_prefill(pair) as (mad, again):
        for number, frames in enumerate(broken_frames(SAMPLES[name])):
            if not knows(pair.decode, mad):
                # What could be read had decode lose it: it pairs again, once nothing of before is on its way.
                all_said(mad)
                again(10_000 + number)
            say(mad, only_route(mad), frames)
        pair.move(2, [3, 4, 5], [6, 7, 8])
        bye = Bye(mad.incarnation, "it has gone mad", drained=False)
        if knows(pair.decode, mad):  # or its last words had decode lose it, which it may know by now
            say(mad, only_route(mad), list(map(bytes, Codec.encode(bye))))
        deadline = soon()
        while knows(pair.decode, mad):
            assert not deadline.expired
            pair.decode.finished(Deadline.after(0.01))
        pair.move(3, [9], [10])
        counts = pair.decode.channel.counts
        assert counts["malformed"] >= 10
        assert counts["errors"] == 0, caplog.text


def test_a_peer_cannot_touch_the_rooms_of_another() -> None:
    with paired() as pair, mad_decode(pair) as decode, mad_prefill(pair) as (prefill, _):
        sender, receiver = pair.open(2)
        sender.init(2, 0)
        receiver.send_metadata([5, 6], 0)
        while sender.poll() is KVPoll.BOOTSTRAPPING:
            sender.wait(Deadline.after(0.01))
        room, generation = RoomId(2), receiver.record.generation
        to_prefill = [Abort(room, generation, MISCHIEF)]
        to_decode: list[Message] = [
            RoomStatus(room, generation, 0, KVPoll.SUCCESS, drained=True),
            RoomStatus(room, generation, 0, KVPoll.FAILED, True, MISCHIEF),
            Released(room, generation),
            AuxRow(room, generation, bytes(64)),
        ]
        for abort in to_prefill:
            say(decode, only_route(decode), list(map(bytes, Codec.encode(abort))))
        for message in to_decode:
            say(prefill, only_route(prefill), list(map(bytes, Codec.encode(message))))
        deadline = soon()
        while pair.decode.channel.counts["stale"] < len(to_decode) and not deadline.expired:
            pair.decode.finished(Deadline.after(0.01))
        assert pair.decode.channel.counts["stale"] == len(to_decode)
        assert receiver.poll() is KVPoll.TRANSFERRING
        assert not receiver.release_safe()
        assert pair.prefill.pools.aux is not None
        pair.prefill.pools.aux.set(0, room, {"first_token": 1})
        sender.send([8, 9])
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, [8, 9], pair.decode.pools, [5, 6])


FORGED: dict[str, Callable[[RequestMetadata], RequestMetadata]] = {
    "a page beyond the pool": lambda w: attrs.evolve(w, pages=np.array([64], np.int64)),
    "a page far beyond": lambda w: attrs.evolve(w, pages=np.array([2**55], np.int64)),
    "the largest page": lambda w: attrs.evolve(w, pages=np.array([2**63 - 1], np.int64)),
    "a page that wraps to 0": lambda w: attrs.evolve(w, pages=np.array([2**57], np.int64)),
    "a negative page": lambda w: attrs.evolve(w, pages=np.array([-1], np.int64)),
    "a million pages": lambda w: attrs.evolve(w, pages=np.zeros(10**6, np.int64)),
    "no page": lambda w: attrs.evolve(w, pages=np.zeros(0, np.int64)),
    "an aux slot beyond": lambda w: attrs.evolve(w, aux_index=16),
    "a negative aux slot": lambda w: attrs.evolve(w, aux_index=-1),
    "the largest aux slot": lambda w: attrs.evolve(w, aux_index=2**63 - 1),
    "state that there is not": lambda w: attrs.evolve(w, state_indices=(np.array([0], np.int64),)),
    "a negative prefix": lambda w: attrs.evolve(w, decode_prefix_len=-4),
    "a prefix of everything": lambda w: attrs.evolve(w, decode_prefix_len=2**62),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_metadata_cannot_widen_what_prefill_writes_to(what: str) -> None:
    with paired() as pair, mad_decode(pair) as mad:
        before = [array.copy() for array in mad.pools.arrays]
        assert mad.pools.aux is not None
        rows = mad.pools.aux.regions[0].owner
        assert isinstance(rows, np.ndarray)
        rows_before = rows.copy()
        sender = pair.prefill.sender(RoomId(2))
        assert pair.prefill.pools.aux is not None
        pair.prefill.pools.aux.set(0, RoomId(2), {"first_token": 1})
        sender.init(1, 0)
        sender.send([1])
        good = RequestMetadata(RoomId(2), Generation(900), np.array([3], np.int64), 3, (), 0, 30.0)
        say(mad, only_route(mad), [bytes(frame) for frame in Codec.encode(FORGED[what](good))])
        assert sender.wait(soon()) is KVPoll.FAILED
        failure = sender.failure()
        assert failure is not None
        assert failure.code is FailureCode.PLAN
        while not sender.release_safe():
            sender.wait(Deadline.after(0.01))
        assert all(np.array_equal(a, b) for a, b in zip(before, mad.pools.arrays, strict=True))
        assert np.array_equal(rows_before, rows)
        sender.clear()
        pair.move(3, [4], [5])


def export_of(lengths: dict[str, int], native: bytes, device: object = None) -> bytes:
    """A region export as an engine makes it, checksum included, of any lengths."""
    regions = [{"name": n, "length": size, "device": {"kind": "cpu"}} for n, size in lengths.items()]
    body = msgspec.msgpack.encode({"version": 1, "regions": regions, "native": native})
    return zlib.crc32(body).to_bytes(4, "big") + body


PAIRINGS: dict[str, Callable[[PeerDescription], PeerDescription]] = {
    "a pool of more pages than are registered": lambda d: attrs.evolve(
        d, layout=attrs.evolve(d.layout, num_pages=1 << 20)
    ),
    "a pool larger than any memory": lambda d: attrs.evolve(
        d, layout=attrs.evolve(d.layout, num_pages=1 << 62)
    ),
    "more aux slots than are registered": lambda d: attrs.evolve(d, aux_slots=1 << 20),
    "an export cut in half": lambda d: attrs.evolve(d, regions=d.regions[: len(d.regions) // 2]),
    "an export with another byte": lambda d: attrs.evolve(d, regions=d.regions[:-1] + b"\xff"),
    "no export": lambda d: attrs.evolve(d, regions=b""),
    "an export of no regions": lambda d: attrs.evolve(d, regions=export_of({}, b"")),
    "an export of other regions": lambda d: attrs.evolve(d, regions=export_of({"secrets": 1 << 40}, b"")),
    "an endpoint of nobody": lambda d: attrs.evolve(d, endpoint=b"\0" * 64),
}


@pytest.mark.parametrize("what", PAIRINGS)
def test_a_forged_pairing_is_refused(what: str) -> None:
    with paired() as pair, mad_decode(pair) as mad:
        stranger = HostileSocket(pair.prefill.address, b"forger")
        forged = PAIRINGS[what](mad.describe("the forger"))
        stranger.say(list(map(bytes, Codec.encode(PairRequest(forged)))))
        reply = stranger.hear_until(PairReply)
        assert reply.misfits or reply.failure
        wanted = RequestMetadata(RoomId(2), Generation(1), np.array([0], np.int64), None, (), 0, 30.0)
        stranger.say(list(map(bytes, Codec.encode(wanted))))
        status = stranger.hear_until(RoomStatus)
        assert (status.status, status.failure and status.failure.code) == (
            KVPoll.FAILED,
            FailureCode.PEER_LOST,
        )
        stranger.close()
        pair.move(3, [4], [5])


def test_a_forged_export_of_local_with_too_few_addresses_is_refused() -> None:
    with paired() as pair, mad_decode(pair) as mad:
        description = mad.describe("the forger")
        body = msgspec.msgpack.decode(description.regions[4:])
        native = msgspec.msgpack.decode(body["native"])
        native["addresses"] = native["addresses"][:1]
        body["native"] = msgspec.msgpack.encode(native)
        packed = msgspec.msgpack.encode(body)
        export = zlib.crc32(packed).to_bytes(4, "big") + packed
        stranger = HostileSocket(pair.prefill.address, b"forger")
        request = PairRequest(attrs.evolve(description, regions=export))
        stranger.say(list(map(bytes, Codec.encode(request))))
        reply = stranger.hear_until(PairReply)
        assert reply.failure is not None
        assert "1 addresses for 9 regions" in reply.failure.there_is
        stranger.close()


def test_metadata_that_never_stops_waiting_is_refused() -> None:
    with paired() as pair, mad_decode(pair) as mad:
        for remaining in (float("nan"), 0.0, -1.0, float("-inf")):
            wanted = RequestMetadata(
                RoomId(2), Generation(900), np.array([3], np.int64), None, (), 0, remaining
            )
            say(mad, only_route(mad), [bytes(frame) for frame in Codec.encode(wanted)])
        deadline = soon()
        while pair.prefill.channel.counts["stale"] < 4 and not deadline.expired:
            pair.prefill.finished(Deadline.after(0.01))
        assert pair.prefill.channel.counts["stale"] == 4
        assert early(pair.prefill) == 0


def test_a_flood_of_strangers_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    with paired(config(interval=0.05)) as pair:
        pair.move(1, [1], [1])
        before = threads()
        for n in range(300):
            stranger = HostileSocket(pair.prefill.address, b"stranger %d" % n)
            life = Incarnation(f"{n:032x}")
            ours = pair.decode.describe("nowhere")
            pairing = PairRequest(attrs.evolve(ours, incarnation=life, endpoint=b"forged"))
            said: list[Message] = [pairing, *(SAMPLES[k] for k in ("RequestMetadata", "Heartbeat", "Abort"))]
            for message in said:
                stranger.say([bytes(frame) for frame in Codec.encode(message)])
            stranger.say([b"\0" * 4096])
            stranger.hear_until(PairReply)
            stranger.close()
        pair.move(2, [3, 4], [5, 6])
        deadline = soon()
        while len(peers(pair.prefill)) > 1 or threads() > before:
            assert not deadline.expired, (len(peers(pair.prefill)), threads() - before)
            pair.prefill.finished(Deadline.after(0.05))
        assert early(pair.prefill) == 0
        assert pair.prefill.channel.counts["errors"] == 0, caplog.text
        pair.move(3, [7], [8])


def test_prefill_takes_only_so_many_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdcore.prefill.facts.MOST_PEERS", 1)
    with paired() as pair:
        pair.move(1, [1], [1])
        with DecodeManager(select("local"), pools(), Topology(), config()) as second:
            receiver = second.receiver(pair.bootstrap.address, RoomId(2))
            receiver.init()
            receiver.send_metadata([1])
            assert receiver.wait(soon()) is KVPoll.FAILED
            failure = receiver.failure()
            assert failure is not None
            assert failure.happened == "prefill takes no more decode workers"
            assert failure.there_is == "1 are paired or pairing"
        pair.move(3, [3], [3])


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_complaints_come_once_per_interval_and_say_how_many_they_stand_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    complaints = Complaints(logging.getLogger("pdcore.test"), 10.0, clock)
    for _ in range(500):
        complaints.about("a", "a is odd")
    complaints.about("b", "b is odd")
    assert [r.getMessage() for r in caplog.records] == ["a is odd", "b is odd"]
    clock.now += 10.0
    complaints.about("a", "a is odd again")
    complaints.about("b", "b is odd again")
    assert [r.getMessage() for r in islice(caplog.records, 2, None)] == [
        "a is odd again\n  499 more like it were not logged",
        "b is odd again",
    ]


def test_complaints_about_many_strangers_take_no_more_room_than_about_a_thousand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    complaints = Complaints(logging.getLogger("pdcore.test"), 10.0, clock)
    for n in range(5000):
        complaints.about(f"stranger {n}", "odd")
    assert len(caplog.records) == 1025
    assert len(complaints._said) == 1025
    clock.now += 20.0
    complaints.about("a", "a is odd")
    assert len(complaints._said) == 1
