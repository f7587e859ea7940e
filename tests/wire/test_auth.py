"""The shared key on the control channel: who has it talks, who has not is let in nowhere and learns why."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import attrs
import pytest
import zmq
from pair import Pair, config, paired, pools, soon
from relay import Relay

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
from pdcore.config.auth_key import AuthKey
from pdcore.errors import AuthenticationError, ConfigError
from pdcore.model import Generation, new_incarnation
from pdcore.wire import AuxRow, Channel, Connection, Message, Released, Route

KEY, OTHER = AuthKey("a key of sixteen or more bytes"), AuthKey("some other key of the same kind")
NEVER = 3600.0
SAME_KEY = "set the same PDCORE_AUTH_KEY on both sides, or on neither"
SECRET_ROW = b"what nobody else shall read" * 4


class End:
    """A started channel with a key or none, what it received and why it was refused."""

    def __init__(self, name: str, key: AuthKey | None, *, bound: str = "") -> None:
        self.received: queue.Queue[Message] = queue.Queue()
        self.refusals: queue.Queue[AuthenticationError] = queue.Queue()
        self.failed: queue.Queue[Connection] = queue.Queue()
        self.channel = Channel(
            name,
            new_incarnation(),
            on_message=self._on_message,
            on_tick=lambda: None,
            tick=NEVER,
            max_message_bytes=2**20,
            auth_key=key,
            on_refused=self._on_refused,
            on_connection=lambda route, event: self.failed.put(event.what),
        )
        host, _, port = bound.rpartition(":")
        self.address = self.channel.bind(host, int(port)) if bound else ""
        self.channel.start()

    def _on_message(self, route: Route, message: Message) -> None:
        self.received.put(message)
        self.last = route

    def _on_refused(self, route: Route, error: AuthenticationError) -> None:
        self.channel.hang_up(route)
        self.refusals.put(error)

    def until(self, *whats: Connection) -> None:
        """Wait for something to happen to a connection."""
        while self.failed.get(timeout=30) not in whats:
            pass

    def settled(self) -> None:
        """Wait until the owner thread has done everything that was ordered before."""
        done = threading.Event()
        self.channel.call(done.set)
        assert done.wait(30)

    def close(self) -> None:
        self.channel.close(soon())


@contextmanager
def ends(dialler: AuthKey | None, bound: AuthKey | None) -> Iterator[tuple[End, End]]:
    here, there = End("d", dialler), End("b", bound, bound="127.0.0.1:0")
    yield here, there
    here.close()
    there.close()


def released(number: int) -> Released:
    return Released(RoomId(number), Generation(1))


# With the same key


def test_two_channels_with_the_same_key_talk_both_ways(caplog: pytest.LogCaptureFixture) -> None:
    with ends(KEY, KEY) as (here, there):
        route = here.channel.dial(there.address)
        for number in range(1000):
            here.channel.post(route, released(number))
        assert [there.received.get(timeout=30) for _ in range(1000)] == [released(n) for n in range(1000)]
        for number in range(1000):
            there.channel.post(there.last, released(number))
        assert [here.received.get(timeout=30) for _ in range(1000)] == [released(n) for n in range(1000)]
        assert not here.channel.counts
        assert not there.channel.counts
    assert not caplog.records


def test_what_is_said_cannot_be_read_on_its_way() -> None:
    with ends(KEY, KEY) as (here, there), Relay(there.address) as relay:
        here.channel.post(here.channel.dial(relay.address), AuxRow(RoomId(1), Generation(1), SECRET_ROW))
        assert there.received.get(timeout=30) == AuxRow(RoomId(1), Generation(1), SECRET_ROW)
        said = b"".join(relay.to_bound + relay.to_dialler)
        assert SECRET_ROW[:20] not in said
        assert here.channel._sockets._identity not in said
        assert b"PDKV" not in said


def test_without_a_key_what_is_said_is_as_it_is() -> None:
    with ends(None, None) as (here, there), Relay(there.address) as relay:
        here.channel.post(here.channel.dial(relay.address), AuxRow(RoomId(1), Generation(1), SECRET_ROW))
        assert there.received.get(timeout=30) == AuxRow(RoomId(1), Generation(1), SECRET_ROW)
        assert SECRET_ROW in b"".join(relay.to_bound)


# What an attacker between the two can do


@pytest.mark.parametrize("back", [1, 17, 60])
def test_what_was_changed_on_its_way_arrives_nowhere(back: int) -> None:
    def flip(said: bytes) -> bytes:
        at = len(said) - back
        return said[:at] + bytes([said[at] ^ 1]) + said[at + 1 :]

    with ends(KEY, KEY) as (here, there), Relay(there.address) as relay:
        route = here.channel.dial(relay.address)
        here.channel.post(route, released(1))
        assert there.received.get(timeout=30) == released(1)
        relay.change = flip
        here.channel.post(route, released(2))
        there.until(Connection.MISFIT)
        relay.change = None
        here.channel.post(route, released(3))
        here.settled()
        relay.hang_up()
        here.until(Connection.DISCONNECTED)
        here.channel.post(route, released(4))
        assert there.received.get(timeout=30) == released(4)


def test_a_recorded_connection_cannot_be_played_again() -> None:
    with ends(KEY, KEY) as (here, there):
        with Relay(there.address) as relay:
            here.channel.post(here.channel.dial(relay.address), released(1))
            assert there.received.get(timeout=30) == released(1)
            recorded = list(relay.to_bound)
        there.until(Connection.DISCONNECTED)
        relay.play(recorded)
        there.until(Connection.FAILED, Connection.MISFIT)
        there.settled()
        assert there.received.empty()
        assert there.channel.counts["unauthenticated"] >= 1


def test_what_a_dialler_says_sent_back_to_it_is_no_answer() -> None:
    """The other direction: a listener without the key that only mirrors."""
    with ends(KEY, KEY) as (here, _), Relay(None) as mirror:
        here.channel.post(here.channel.dial(mirror.address), AuxRow(RoomId(1), Generation(1), SECRET_ROW))
        here.until(Connection.MISFIT, Connection.FAILED)
        assert here.received.empty()


def test_a_dialler_with_the_key_tells_nothing_to_a_listener_without_it() -> None:
    for key in (None, OTHER):
        with ends(KEY, key) as (here, there), Relay(there.address) as relay:
            here.channel.post(here.channel.dial(relay.address), AuxRow(RoomId(1), Generation(1), SECRET_ROW))
            here.refusals.get(timeout=30)
            assert SECRET_ROW[:20] not in b"".join(relay.to_bound)
            assert there.received.empty()


def test_two_bound_sides_or_two_diallers_do_not_take_each_other_for_their_like() -> None:
    """The key pair of the bound side is not one that a dialler has: what is derived differs by role."""
    context = zmq.Context()
    with ends(KEY, KEY) as (here, there):
        curve = there.channel._sockets._curve
        assert curve is not None
        impostor = context.socket(zmq.ROUTER)
        impostor.setsockopt(zmq.CURVE_SERVER, 1)
        public, secret = curve._dialler
        impostor.setsockopt(zmq.CURVE_SECRETKEY, secret)
        impostor.setsockopt(zmq.CURVE_PUBLICKEY, public)
        port = impostor.bind_to_random_port("tcp://127.0.0.1")
        here.channel.post(here.channel.dial(f"127.0.0.1:{port}"), released(1))
        assert here.refusals.get(timeout=30).happened == "the peer has another key"
        assert not impostor.poll(0)
        impostor.close(linger=0)
    context.term()


# Restart and rotation


def test_a_bound_side_that_started_anew_is_found_again(caplog: pytest.LogCaptureFixture) -> None:
    with ends(KEY, KEY) as (here, there):
        route = here.channel.dial(there.address)
        here.channel.post(route, released(1))
        assert there.received.get(timeout=30) == released(1)
        there.close()
        here.until(Connection.DISCONNECTED)
        again = End("b", KEY, bound=there.address)
        here.channel.post(route, released(2))
        assert again.received.get(timeout=30) == released(2)
        again.channel.post(again.last, released(3))
        assert here.received.get(timeout=30) == released(3)
        assert here.refusals.empty()
        again.close()
    assert not caplog.records


@pytest.mark.parametrize(
    ("before", "after", "happened"),
    [
        (KEY, OTHER, "the peer has another key"),
        (KEY, None, "the peer has no key"),
        (None, KEY, "the peer requires a key"),
    ],
)
def test_a_bound_side_that_started_anew_with_another_key_or_none_ends_the_pairing(
    before: AuthKey | None, after: AuthKey | None, happened: str
) -> None:
    with ends(before, before) as (here, there):
        route = here.channel.dial(there.address)
        here.channel.post(route, released(1))
        assert there.received.get(timeout=30) == released(1)
        there.close()
        again = End("b", after, bound=there.address)
        assert here.refusals.get(timeout=30).happened == happened
        assert again.received.empty()
        # Rotated here as well, the two talk again.
        rotated = End("d", after)
        rotated.channel.post(rotated.channel.dial(again.address), released(2))
        assert again.received.get(timeout=30) == released(2)
        rotated.close()
        again.close()


# What each side learns of a mismatch


@pytest.mark.parametrize(
    ("dialler", "bound", "learns", "there_is"),
    [
        (KEY, OTHER, "the peer has another key", "the PDCORE_AUTH_KEY (auth_key) of the two differ"),
        (KEY, None, "the peer has no key", "this side has PDCORE_AUTH_KEY (auth_key) set"),
        (None, KEY, "the peer requires a key", "this side has no PDCORE_AUTH_KEY (auth_key)"),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_sides_of_a_mismatch_learn_why(
    host: str,
    dialler: AuthKey | None,
    bound: AuthKey | None,
    learns: str,
    there_is: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here, there = End("d", dialler), End("b", bound, bound=f"{host}:0")
    for _ in range(3):
        here.channel.post(here.channel.dial(there.address), released(1))
    error = here.refusals.get(timeout=30)
    assert (error.happened, error.there_is, error.to_do) == (learns, there_is, SAME_KEY)
    there.until(Connection.DISCONNECTED)
    there.settled()
    assert there.received.empty()
    assert there.channel.counts["unauthenticated"] >= 1
    here.close()
    there.close()
    assert here.channel.counts["unauthenticated"] == 1
    said = [text for text in caplog.messages if text.startswith("unauthenticated peer ")]
    about_bound = [text for text in said if text.startswith(f"unauthenticated peer {there.address}: ")]
    assert len(about_bound) == 1
    # Of the dialler's address, and of connections that were gone before it could be read.
    assert 1 <= len(said) - len(about_bound) <= 2
    assert all("PDCORE_AUTH_KEY" in text for text in said)
    assert not any(secret in caplog.text for secret in ("sixteen or more", "some other key"))


@contextmanager
def another_service(says: bytes) -> Iterator[str]:
    """Something else than a manager: it hears a little, says its piece, and hangs up on everybody."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(says)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail ESMTP\r\n", bytes(64)])
def test_a_port_of_something_else_is_told_from_a_peer(key: AuthKey | None, says: bytes) -> None:
    here = End("d", key)
    with another_service(says) as address:
        here.channel.dial(address)
        error = here.refusals.get(timeout=30)
    here.close()
    assert error.happened == "the peer does not speak the control protocol"
    assert error.to_do == "let nothing else than pdcore's managers use this port, in matching versions"


@pytest.mark.parametrize("key", [KEY, None])
def test_a_port_that_only_hangs_up_is_tried_on(key: AuthKey | None) -> None:
    """A proxy whose manager is starting."""
    here = End("d", key)
    with another_service(b"") as address:
        here.channel.dial(address)
        for _ in range(6):
            here.until(Connection.FAILED)
        assert here.refusals.empty()
    here.close()


STANDING_STILL = """
import ctypes, sys
from pdcore.model import new_incarnation
from pdcore.config.auth_key import AuthKey
from pdcore.wire import Channel
nothing = lambda *_: None
end = Channel("b", new_incarnation(), on_message=nothing, on_tick=nothing, tick=9, max_message_bytes=2**20,
              auth_key=AuthKey(sys.argv[1]))
address = end.bind("127.0.0.1", 0)
end.start()
print(address, flush=True)
ctypes.PyDLL(None).sleep(600)  # with the interpreter lock
"""


def test_a_bound_side_whose_interpreter_stands_still_lets_in_who_has_the_key() -> None:
    here = End("d", KEY)
    with subprocess.Popen(
        [sys.executable, "-c", STANDING_STILL, "a key of sixteen or more bytes"],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        here.channel.dial(child.stdout.readline().strip())
        here.until(Connection.HANDSHAKEN)
        child.kill()
    here.close()


def test_a_dialler_that_has_no_descriptor_to_ask_with_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdcore.wire.sockets._MOST_SOCKETS", 3)  # of the dialled peer alone
    with ends(KEY, OTHER) as (here, there):
        here.channel.dial(there.address)
        for _ in range(4):
            here.until(Connection.FAILED)
        assert here.refusals.empty()
        assert here.channel.alive
        assert not here.channel.counts["errors"]


def test_a_key_needs_a_libzmq_with_curve_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = select("local")
    has = zmq.has
    monkeypatch.setattr(zmq, "has", lambda feature: feature != "curve" and has(feature))
    monkeypatch.setattr(type(backend), "start_engine", lambda *args, **settings: pytest.fail("it started"))
    with pytest.raises(ConfigError) as caught:
        DecodeManager(backend, pools(), Topology(), keyed(KEY))
    assert "auth_key (from configuration): needs a libzmq with CURVE, and " in caught.value.there_is
    with pytest.raises(ConfigError):
        End("d", KEY)


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
