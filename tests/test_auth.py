"""The shared key on the control channel: the gates alone, with the tests as the attacker between them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import pytest
import zmq
from pair import Pair, config, finish, paired, pools, soon
from wire_samples import LIFE

from pdcore import (
    BootstrapServer,
    Config,
    ControlConfig,
    DecodeManager,
    FailureCode,
    KVPoll,
    PrefillManager,
    RoomId,
    Topology,
    select,
)
from pdcore.errors import AuthenticationError
from pdcore.model import Generation, new_incarnation
from pdcore.secret import AuthKey
from pdcore.wire import Channel, Codec, Heartbeat, Message, Released, Route
from pdcore.wire.auth import MOST_CHALLENGED, KeyedGate, OpenGate

KEY, OTHER = AuthKey("a key of sixteen or more bytes"), AuthKey("some other key of the same kind")
NEVER = 3600.0
SAME_KEY = "set the same PDCORE_AUTH_KEY on both sides, or on neither"

Frames = list[bytes | memoryview]


@attrs.frozen
class Received:
    """A frame as ZMQ hands it in."""

    buffer: memoryview


class Side:
    """One gate: what it put out, what it let pass, and what it refused."""

    def __init__(self, key: AuthKey | None, identity: bytes = b"decode") -> None:
        self.out: list[tuple[Route, Frames]] = []
        self.refused: list[AuthenticationError] = []
        self.ended: list[AuthenticationError] = []
        self.gate: KeyedGate[Route] | OpenGate[Route] = (
            KeyedGate(key, identity, self._put, self._refused) if key else OpenGate(self._put, self._refused)
        )

    def _put(self, route: Route, frames: Frames) -> None:
        self.out.append((route, [bytes(frame) for frame in frames]))

    def _refused(self, route: Route, error: AuthenticationError, final: bool) -> None:
        (self.ended if final else self.refused).append(error)

    def hear(self, route: Route, frames: Sequence[bytes | memoryview]) -> list[bytes] | None:
        opened = self.gate.open(route, [Received(memoryview(frame)) for frame in frames])
        return None if opened is None else [bytes(frame.buffer) for frame in opened]


BOUND, DIALLER = Route(b"10.0.0.1:5"), Route(b"decode")


class Line:
    """A dialler, a bound side, and nobody between them unless a test is."""

    def __init__(self, dialler: AuthKey | None = KEY, bound: AuthKey | None = KEY) -> None:
        self.dialler, self.bound = Side(dialler), Side(bound)
        self.dialler.gate.dialled(BOUND)

    def to_bound(self) -> list[list[bytes]]:
        """Deliver all that the dialler put out; return what passed."""
        sent, self.dialler.out = self.dialler.out, []
        heard = (self.bound.hear(DIALLER, frames) for _, frames in sent)
        return [frames for frames in heard if frames is not None]

    def to_dialler(self) -> list[list[bytes]]:
        """Deliver all that the bound side put out; return what passed."""
        sent, self.bound.out = self.bound.out, []
        heard = (self.dialler.hear(BOUND, frames) for _, frames in sent)
        return [frames for frames in heard if frames is not None]

    def greeted(self) -> Line:
        """Finish the handshake with a first message."""
        self.dialler.gate.send(BOUND, [b"first"])
        self.to_bound()
        self.to_dialler()
        assert self.to_bound() == [[b"first"]]
        return self

    def sealed(self, *frames: bytes) -> list[bytes]:
        """Return what the dialler puts out for a message, without delivering it."""
        self.dialler.gate.send(BOUND, list(frames))
        return [bytes(frame) for frame in self.dialler.out.pop()[1]]


@pytest.fixture
def line() -> Line:
    return Line().greeted()


# Between the two


def test_messages_wait_for_the_handshake_and_keep_their_order_both_ways() -> None:
    line = Line()
    for number in range(3):
        line.dialler.gate.send(BOUND, [b"%d" % number, b"array"])
    assert len(line.dialler.out) == 1  # the greeting
    assert line.to_bound() == line.to_dialler() == []
    assert line.to_bound() == [[b"%d" % n, b"array"] for n in range(3)]
    line.bound.gate.send(DIALLER, [b"back"])
    assert line.to_dialler() == [[b"back"]]
    assert not line.dialler.refused
    assert not line.bound.refused


def test_without_a_key_frames_go_out_as_they_are() -> None:
    line = Line(None, None)
    line.dialler.gate.send(BOUND, [b"plain"])
    assert line.dialler.out == [(BOUND, [b"plain"])]
    assert line.to_bound() == [[b"plain"]]


def flipped(frame: bytes, at: int) -> bytes:
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]


FORGERIES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "changed message": lambda f: [f[0], flipped(f[1], 0), f[2]],
    "changed array": lambda f: [*f[:2], flipped(f[2], 2)],
    "changed number": lambda f: [flipped(f[0], 12), *f[1:]],
    "changed code": lambda f: [flipped(f[0], 44), *f[1:]],
    "truncated code": lambda f: [f[0][:-1], *f[1:]],
    "no code": lambda f: [f[0][:13], *f[1:]],
    "no frames": lambda f: f[:1],
    "one frame less": lambda f: f[:2],
    "one frame more": lambda f: [*f, b""],
    "frames swapped": lambda f: [f[0], f[2], f[1]],
    "bytes moved between frames": lambda f: [f[0], f[1] + f[2][:1], f[2][1:]],
    "no seal": lambda f: f[1:],
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_was_changed_on_its_way_is_dropped_and_the_next_one_passes(line: Line, forgery: str) -> None:
    sealed = line.sealed(b"head", b"array")
    assert line.bound.hear(DIALLER, FORGERIES[forgery](sealed)) is None
    assert len(line.bound.refused) == 1
    line.dialler.gate.send(BOUND, [b"next"])
    assert line.to_bound() == [[b"next"]]


def test_a_repeated_message_passes_once(line: Line) -> None:
    sealed = line.sealed(b"pay")
    assert line.bound.hear(DIALLER, sealed) == [b"pay"]
    assert line.bound.hear(DIALLER, sealed) is None
    assert line.bound.refused[0].happened == "a message with a wrong code was dropped"


def test_of_two_messages_that_an_attacker_reorders_the_earlier_is_dropped(line: Line) -> None:
    first, second = line.sealed(b"1"), line.sealed(b"2")
    assert line.bound.hear(DIALLER, second) == [b"2"]
    assert line.bound.hear(DIALLER, first) is None


def test_a_message_that_was_lost_does_not_stop_the_next(line: Line) -> None:
    line.sealed(b"lost")
    assert line.bound.hear(DIALLER, line.sealed(b"next")) == [b"next"]


def test_a_message_sent_back_to_its_sender_is_dropped(line: Line) -> None:
    assert line.dialler.hear(BOUND, line.sealed(b"mine")) is None
    assert len(line.dialler.refused) == 1


def test_a_message_is_worth_nothing_under_another_identity(line: Line) -> None:
    assert line.bound.hear(Route(b"another"), line.sealed(b"mine")) is None


def test_a_whole_recorded_session_cannot_be_played_again() -> None:
    line = Line()
    line.dialler.gate.send(BOUND, [b"pay"])
    hello = list(line.dialler.out)
    line.to_bound()
    line.to_dialler()
    recorded = [*hello, *line.dialler.out]
    assert line.to_bound() == [[b"pay"]]
    for bound in (line.bound, Side(KEY)):
        assert [bound.hear(DIALLER, frames) for _, frames in recorded] == [None, None]
    line.dialler.gate.send(BOUND, [b"go on"])
    assert line.to_bound() == [[b"go on"]]


def test_a_challenge_for_another_greeting_is_not_believed(line: Line) -> None:
    other = Line()
    other.to_bound()
    fresh = Line()
    assert fresh.dialler.hear(BOUND, other.bound.out[0][1]) is None
    assert [error.happened for error in fresh.dialler.ended] == ["the peer has another key"]


# Restart and rotation


def restarted(line: Line, key: AuthKey | None) -> None:
    """The bound process is started anew behind the same connection; a heartbeat finds it."""
    line.bound = Side(key)
    line.dialler.gate.send(BOUND, [b"heartbeat"])
    line.to_bound()
    line.to_dialler()


def test_a_peer_that_started_anew_gets_a_new_session(line: Line) -> None:
    restarted(line, KEY)
    line.dialler.gate.send(BOUND, [b"held"])
    line.to_bound()
    line.to_dialler()
    assert line.to_bound() == [[b"held"]]
    line.bound.gate.send(DIALLER, [b"back"])
    assert line.to_dialler() == [[b"back"]]
    assert not line.dialler.ended


@pytest.mark.parametrize(
    ("key", "happened"), [(OTHER, "the peer has another key"), (None, "the peer has no key")]
)
def test_a_peer_that_started_anew_with_another_key_or_none_ends_the_pairing(
    line: Line, key: AuthKey | None, happened: str
) -> None:
    restarted(line, key)
    line.to_bound()
    line.to_dialler()
    assert [error.happened for error in line.dialler.ended] == [happened]
    assert line.to_bound() == []


def test_a_forged_refusal_does_not_end_a_session() -> None:
    for reason in (b"\x01", b"\x02", b"\x03", b"\x04"):
        line = Line().greeted()
        line.dialler.hear(BOUND, [b"PDKA\x04" + reason])
        assert not line.dialler.ended
        line.dialler.gate.send(BOUND, [b"still"])
        line.to_bound()
        line.to_dialler()
        assert line.to_bound() == [[b"still"]]


# What each side learns of a mismatch


@pytest.mark.parametrize(
    ("dialler", "bound", "learns", "logs"),
    [
        (KEY, OTHER, "the peer has another key", "the peer has another key"),
        (KEY, None, "the peer has no key", "this side has no key"),
        (None, KEY, "the peer requires a key", "this side requires a key"),
    ],
)
def test_both_sides_of_a_mismatch_learn_why(
    dialler: AuthKey | None, bound: AuthKey | None, learns: str, logs: str
) -> None:
    line = Line(dialler, bound)
    line.dialler.gate.send(BOUND, [b"pair with me"])
    for _ in range(3):
        assert line.to_bound() == line.to_dialler() == []
    assert [error.happened for error in line.dialler.ended] == [learns]
    assert {error.happened for error in line.bound.refused} == {logs}
    for error in (*line.dialler.ended, *line.bound.refused):
        assert "PDCORE_AUTH_KEY" in error.there_is
        assert error.to_do == SAME_KEY


@pytest.mark.parametrize(
    "frame",
    [b"PDKA", b"PDKA\x01", b"PDKA\x01" + b"n" * 31, b"PDKA\x02" + b"n" * 64, b"PDKA\x09", b"PDKA\x04\x09"],
)
def test_a_malformed_handshake_is_refused_and_opens_nothing(line: Line, frame: bytes) -> None:
    assert line.bound.hear(Route(b"stranger"), [frame]) is None
    assert line.dialler.hear(BOUND, [frame]) is None
    assert len(line.bound.refused) == 1
    line.dialler.gate.send(BOUND, [b"next"])
    assert line.to_bound() == [[b"next"]]


def test_any_number_of_strangers_that_greet_leave_a_session_as_it_is(line: Line) -> None:
    for number in range(MOST_CHALLENGED + 10):
        line.bound.hear(Route(b"%d" % number), [b"PDKA\x01" + b"n" * 32])
    line.dialler.gate.send(BOUND, [b"next"])
    assert line.to_bound() == [[b"next"]]


def test_nothing_is_said_to_a_stranger_who_has_no_session(line: Line) -> None:
    with pytest.raises(AuthenticationError, match="this side knows no session"):
        line.bound.gate.send(Route(b"stranger"), [b"secret"])


# Over real sockets


class End:
    """A started channel with a key, what it received and why it was refused."""

    def __init__(self, name: str, key: AuthKey | None, *, bound: bool) -> None:
        self.received: queue.Queue[Message] = queue.Queue()
        self.refusals: queue.Queue[AuthenticationError] = queue.Queue()
        self.channel = Channel(
            name,
            new_incarnation(),
            on_message=lambda route, message: self.received.put(message),
            on_tick=lambda: None,
            tick=NEVER,
            max_message_bytes=2**16,
            auth_key=key,
            on_refused=lambda route, error: self.refusals.put(error),
        )
        self.address = self.channel.bind("127.0.0.1", 0) if bound else ""
        self.channel.start()


@contextmanager
def ends(dialler: AuthKey | None, bound: AuthKey | None) -> Iterator[tuple[End, End]]:
    here, there = End("d", dialler, bound=False), End("b", bound, bound=True)
    yield here, there
    here.channel.close(soon())
    there.channel.close(soon())


def released(number: int) -> Released:
    return Released(RoomId(number), Generation(1))


def test_two_channels_with_the_same_key_talk(caplog: pytest.LogCaptureFixture) -> None:
    with ends(KEY, KEY) as (here, there):
        route = here.channel.dial(there.address)
        for number in range(1000):
            here.channel.post(route, released(number))
        assert [there.received.get(timeout=30) for _ in range(1000)] == [released(n) for n in range(1000)]
        assert not here.channel.counts
        assert not there.channel.counts
    assert not caplog.records


@pytest.mark.parametrize(
    ("dialler", "bound", "learns"),
    [
        (KEY, OTHER, "the peer has another key"),
        (KEY, None, "the peer has no key"),
        (None, KEY, "the peer requires a key"),
    ],
)
def test_the_side_that_dials_is_told_of_a_mismatch_and_the_bound_one_logs_the_sender(
    dialler: AuthKey | None, bound: AuthKey | None, learns: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ends(dialler, bound) as (here, there):
        for _ in range(3):
            here.channel.post(here.channel.dial(there.address), released(1))
        assert here.refusals.get(timeout=30).happened == learns
        settled = threading.Event()
        there.channel.call(settled.set)
        assert settled.wait(30)
        assert there.received.empty()
    assert there.channel.counts["unauthenticated"] >= 1
    assert "unauthenticated message, peer " in caplog.text
    assert all(secret not in caplog.text for secret in ("sixteen or more", "some other key"))


class Stranger:
    """A raw socket without the key."""

    def __init__(self, address: str, name: bytes) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, name)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://{address}")

    def say(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def hear(self) -> list[bytes]:
        assert self._socket.poll(30_000)
        return self._socket.recv_multipart()

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def test_a_stranger_is_counted_logged_once_and_told_that_a_key_is_required(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ends(KEY, KEY) as (here, there):
        stranger = Stranger(there.address, b"stranger")
        forged = [b"\0" * 24, *(bytes(frame) for frame in Codec.encode(Heartbeat(LIFE)))]
        for _ in range(20):
            stranger.say(*forged)
            assert stranger.hear() == [b"PDKA\x04\x02"]
        here.channel.post(here.channel.dial(there.address), released(1))
        assert there.received.get(timeout=30) == released(1)
        assert there.received.empty()
        assert there.channel.counts == {"unauthenticated": 20}
        stranger.close()
    (record,) = caplog.records
    assert "unauthenticated message, peer stranger: this side requires a key" in record.getMessage()


# Managers


def keyed(key: AuthKey | None) -> Config:
    return attrs.evolve(config(), auth_key=key)


def test_requests_move_when_all_three_have_the_key() -> None:
    with paired(keyed(KEY)) as pair:
        for room in (1, 2):
            pair.move(room, [1, 2, 3], [7, 5, 6])
        assert not pair.prefill.channel.counts
        assert not pair.decode.channel.counts
        assert not pair.bootstrap.counts


class OtherControlKey(DecodeManager):
    """A decode manager that bootstrap believes and prefill does not."""

    def _open_channel(self, make: Callable[..., Channel] = Channel) -> Channel:
        def with_other_key(*args: Any, **settings: Any) -> Channel:
            return make(*args, **{**settings, "auth_key": OTHER})

        return super()._open_channel(with_other_key)


def test_a_room_whose_pairing_is_refused_fails_at_once_and_says_why() -> None:
    backend = select("local")
    with (
        BootstrapServer(auth_key=KEY) as bootstrap,
        PrefillManager(backend, pools(), Topology(), bootstrap.address, keyed(KEY)) as prefill,
        OtherControlKey(backend, pools(), Topology(), keyed(KEY)) as decode,
    ):
        receiver = decode.receiver(bootstrap.address, RoomId(1))
        receiver.init()
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.UNAUTHENTICATED
        assert failure.happened.startswith("cannot pair with prefill")
        assert failure.happened.endswith("the peer has another key")
        assert failure.to_do == SAME_KEY
        assert prefill.channel.alive


@pytest.mark.parametrize(
    ("key", "there_is"),
    [(None, "is missing: it has no key"), (OTHER, "is wrong: its key is another")],
)
def test_a_decode_worker_that_bootstrap_does_not_believe_fails_its_rooms_at_once(
    key: AuthKey | None, there_is: str
) -> None:
    backend = select("local")
    with (
        BootstrapServer(auth_key=KEY) as bootstrap,
        PrefillManager(backend, pools(), Topology(), bootstrap.address, keyed(KEY)),
        DecodeManager(backend, pools(), Topology(), keyed(key)) as decode,
    ):
        receiver = decode.receiver(bootstrap.address, RoomId(1))
        receiver.init()
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert (failure.code, failure.to_do) == (FailureCode.UNAUTHENTICATED, SAME_KEY)
        assert there_is in failure.there_is


@pytest.mark.parametrize(
    ("service", "prefill", "happened"),
    [
        (KEY, None, "the bootstrap service requires its key"),
        (KEY, OTHER, "the bootstrap service requires its key"),
        (None, KEY, "the bootstrap service has no key"),
    ],
)
def test_a_prefill_worker_that_bootstrap_does_not_believe_does_not_start(
    service: AuthKey | None, prefill: AuthKey | None, happened: str
) -> None:
    with BootstrapServer(auth_key=service) as bootstrap, pytest.raises(AuthenticationError) as caught:
        PrefillManager(select("local"), pools(), Topology(), bootstrap.address, keyed(prefill))
    assert caught.value.happened == f"{happened} (bootstrap service {bootstrap.address})"
    assert caught.value.to_do == SAME_KEY


def test_a_prefill_worker_that_started_anew_behind_the_same_port_is_believed_again() -> None:
    backend = select("local")
    with BootstrapServer(auth_key=KEY) as bootstrap, ExitStack() as stack:
        decode = stack.enter_context(DecodeManager(backend, pools(), Topology(), keyed(KEY)))
        port = 0
        for room in (1, 2, 3):
            cfg = attrs.evolve(keyed(KEY), control=ControlConfig(port=port))
            with PrefillManager(backend, pools(), Topology(), bootstrap.address, cfg) as prefill:
                port = int(prefill.address.rpartition(":")[2])
                Pair(bootstrap, prefill, decode).move(room, [1, 2], [3, 4])


def test_a_stranger_cannot_abort_a_room_of_a_keyed_pair(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    with paired(keyed(KEY)) as pair:
        pair.move(1, [1], [1])
        stranger = Stranger(pair.prefill.address, b"somebody else")
        sender, receiver = pair.open(2)
        stranger.say(b"\0" * 24, *(bytes(f) for f in Codec.encode(Released(RoomId(2), Generation(1)))))
        assert stranger.hear() == [b"PDKA\x04\x02"]
        stranger.close()
        sender.init(2, None)
        receiver.send_metadata([3, 4], None)
        sender.send([5, 6])
        finish(sender, receiver)
        assert pair.prefill.channel.counts["unauthenticated"] == 1
