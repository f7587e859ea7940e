"""Where sides listen and what they tell peers, on this machine's real addresses."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import attrs
import pytest
from pair import Pair, config, fill, finish, pools

from pdcore import (
    BootstrapServer,
    Config,
    ControlConfig,
    Deadline,
    DecodeManager,
    KVPoll,
    PrefillManager,
    RoomId,
    Timeouts,
    Topology,
    select,
)
from pdcore.errors import AddressError
from pdcore.host.address import is_wildcard, join
from pdcore.host.machine import find_place, interface_addresses, listen
from pdcore.selection.select import Backend

V6 = "::1" in interface_addresses("lo")
needs_ipv6 = pytest.mark.skipif(not V6, reason="this machine has no ::1")
LINK_LOCAL = [a for _, name in socket.if_nameindex() for a in interface_addresses(name) if "%" in a]
BAD_ADDRESSES = [
    "",
    "host",
    "host:port:x",
    "h:99999",
    "http://h:1",
    "0.0.0.0:8998",
    "::1",
    None,
    ("h", 1),
    8998,
]


@contextmanager
def pair_at(
    host: str,
    advertise: str | None = None,
    *,
    port: int = 0,
    service: str = "127.0.0.1",
    key: str | None = None,
) -> Iterator[Pair]:
    """Start both sides and a service, all listening and telling peers as it is said."""
    decoding = attrs.evolve(config(), auth_key=key)
    cfg = attrs.evolve(decoding, host=host, advertise=advertise, control=ControlConfig(port=port))
    memory = pools()
    fill(memory, 1)
    with (
        BootstrapServer(service, auth_key=key) as bootstrap,
        PrefillManager(select("local"), memory, Topology(), bootstrap.address, cfg) as prefill,
        DecodeManager(select("local"), pools(), Topology(), decoding) as decode,
    ):
        yield Pair(bootstrap, prefill, decode)


@needs_ipv6
@pytest.mark.parametrize(("host", "key"), [("::1", None), ("[::1]", "a secret of 16 bytes or more")])
def test_a_request_moves_over_ipv6(host: str, key: str | None) -> None:
    with pair_at(host, service=host, key=key) as pair:
        assert pair.bootstrap.address.startswith("[::1]:")
        assert pair.prefill.address.startswith("[::1]:")
        pair.move(1, [1, 2], [3, 4])
        # The same service, written without brackets, is the same group.
        bare = pair.bootstrap.address.replace("[", "").replace("]", "")
        receiver = pair.decode.receiver(bare, RoomId(2))
        receiver.init()
        receiver.send_metadata([5], None)
        sender = pair.prefill.sender(RoomId(2))
        sender.init(1, None)
        sender.send([6])
        finish(sender, receiver)


@pytest.mark.skipif(not LINK_LOCAL, reason="no interface has a link-local address")
def test_a_request_moves_over_a_link_local_address() -> None:
    scoped = LINK_LOCAL[0]
    with pair_at(f"[{scoped}]", service=scoped) as pair:
        assert pair.prefill.address.startswith(f"[{scoped}]:")
        pair.move(1, [1, 2], [3, 4])
    # The scope of an address of this machine is found where it was left out.
    assert find_place(scoped.partition("%")[0]).listens == scoped


@pytest.mark.parametrize("host", ["0.0.0.0", "*", pytest.param("::", marks=needs_ipv6)])
def test_peers_are_told_what_a_wildcard_advertises(host: str) -> None:
    with pair_at(host, "127.0.0.1", service="127.0.0.1") as pair:
        assert pair.prefill.address.startswith("127.0.0.1:")
        pair.move(1, [1, 2], [3, 4])
    with BootstrapServer(host, advertise="localhost") as service:
        assert service.address.startswith("localhost:")


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "::"])
def test_a_wildcard_alone_is_never_advertised(host: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pdcore.machine")
    try:
        place = find_place(host)
    except AddressError as error:  # a machine without a default route
        assert "set advertise (PDCORE_ADVERTISE)" in error.to_do  # noqa: PT017 - either is right
        return
    assert not is_wildcard(place.advertised)
    assert f"peers are told {place.advertised}" in caplog.text
    with pair_at(host, service=host) as pair:
        assert pair.prefill.address.startswith(join(place.advertised, ""))
        assert pair.bootstrap.address.startswith(join(place.advertised, ""))
        pair.move(1, [1, 2], [3, 4])


def test_a_wildcard_is_refused_where_nobody_reaches_this_machine() -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    code = """
        from pdcore.errors import AddressError
        from pdcore.host.machine import find_place
        for host in ("0.0.0.0", "*", "::"):
            try:
                print(find_place(host))
            except AddressError as error:
                print("refused", error.to_do)
        print(find_place("0.0.0.0", "127.0.0.1"))
    """
    run = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = run.stdout.splitlines()
    assert [line.startswith("refused set advertise") for line in lines] == [True, True, True, False], (
        run.stdout
    )


def test_a_side_behind_a_nat_is_dialled_where_it_says() -> None:
    with closing(listen("127.0.0.1", 0)) as free:
        inner = free.getsockname()[1]
    with forwarding(inner) as outer, pair_at("127.0.0.1", f"localhost:{outer}", port=inner) as pair:
        assert pair.prefill.address == f"localhost:{outer}"
        pair.move(1, [1, 2], [3, 4])


@contextmanager
def forwarding(inner: int) -> Iterator[int]:
    """Pass connections on to a port of this machine, as a NAT does; yields the outer port."""
    threads: list[threading.Thread] = []
    ends: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                outside, _ = outer.accept()
                inside = socket.create_connection(("127.0.0.1", inner))
                ends.extend((outside, inside))
                for way in ((outside, inside), (inside, outside)):
                    threads.append(threading.Thread(target=pump, args=way))
                    threads[-1].start()

    outer = listen("127.0.0.1", 0)
    serving = threading.Thread(target=serve)
    serving.start()
    try:
        yield outer.getsockname()[1]
    finally:
        outer.shutdown(socket.SHUT_RDWR)
        serving.join(30)
        for end in (outer, *ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in threads:
            thread.join(30)


@pytest.mark.parametrize(
    ("host", "listens"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("localhost", "127.0.0.1"),
        ("lo", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        pytest.param("0::1", "::1", marks=needs_ipv6),
    ],
)
def test_a_host_is_resolved_to_an_address_of_this_machine(host: str, listens: str) -> None:
    place = find_place(host)
    assert (place.listens, place.advertised) == (listens, listens)
    assert place.address(5) == join(listens, 5)


def test_an_interface_may_be_advertised_and_a_name_need_not_be_known_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert find_place("127.0.0.1", "lo").address(5) == "127.0.0.1:5"
    assert find_place("127.0.0.1", "prefill-0.invalid:7").address(5) == "prefill-0.invalid:7"
    assert "advertise prefill-0.invalid does not resolve on this machine" in caplog.text


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.99", "is not an address of this machine"),
        ("2001:db8::99", "is not an address of this machine"),
        ("fe80::99", "is not an address of this machine"),
        ("eth99.invalid", "does not resolve, and is no interface of this machine"),
        ("nosuchhost.invalid", "does not resolve, and is no interface of this machine"),
    ],
)
def test_a_host_that_is_none_of_this_machine_is_refused_at_start(host: str, why: str) -> None:
    starts: tuple[Any, ...] = (
        lambda: find_place(host),
        lambda: BootstrapServer(host).start(),
        lambda: DecodeManager(select("local"), pools(), Topology(), Config(host=host)),
        lambda: PrefillManager(select("local"), pools(), Topology(), "127.0.0.1:1", Config(host=host)),
    )
    for start in starts:
        with pytest.raises(AddressError, match="host ") as caught:
            start()
        assert why in caught.value.happened
        assert "lo (127.0.0.1" in caught.value.there_is
        assert caught.value.to_do.startswith("set host to an address")


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=repr)
def test_a_bootstrap_address_that_cannot_be_one_is_refused_when_it_is_handed_in(
    address: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backend, "start_engine", lambda *_, **__: pytest.fail("an engine was started"))
    with pytest.raises(AddressError, match="the address of the bootstrap service cannot be "):
        PrefillManager(select("local"), pools(), Topology(), address)


def test_decode_opens_no_room_for_a_bootstrap_address_that_cannot_be_one() -> None:
    with DecodeManager(select("local"), pools(), Topology(), config()) as decode:
        for address in BAD_ADDRESSES:
            bad: Any = address
            with pytest.raises(AddressError, match="the address of the bootstrap service cannot be "):
                decode.receiver(bad, RoomId(7))
        receiver = decode.receiver("127.0.0.1:1", RoomId(7))
        receiver.abort()
        receiver.clear()


@pytest.mark.parametrize("host", ["", "h:1", "http://h", "1.2.3", None, ("h", 1), 5])
def test_a_service_is_made_only_for_what_can_be_a_host(host: Any) -> None:
    with pytest.raises(AddressError, match="host cannot be "):
        BootstrapServer(host)
    if host is not None:
        with pytest.raises(AddressError, match="advertise cannot be "):
            BootstrapServer(advertise="" if host == "h:1" else host)


@pytest.mark.parametrize("port", [-1, 65_536, "8998", None, 1.5, True])
def test_a_service_is_made_only_for_what_can_be_a_port(port: Any) -> None:
    with pytest.raises(AddressError, match="ports are 0 to 65535"):
        BootstrapServer(port=port)


def test_engines_are_told_the_advertised_host(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    start = Backend.start_engine

    def starting(self: Backend, **asked: Any) -> Any:
        told.append(asked["host"])
        return start(self, **asked)

    monkeypatch.setattr(Backend, "start_engine", starting)
    with pair_at("0.0.0.0", "127.0.0.1:9") as pair:
        assert pair.prefill.address == "127.0.0.1:9"
    assert told == ["127.0.0.1", "127.0.0.1"]


def test_a_bootstrap_service_that_is_nowhere_costs_a_request_no_more_than_its_own_timeout() -> None:
    with closing(listen("127.0.0.1", 0)) as free:
        nowhere = join("127.0.0.1", free.getsockname()[1])
    cfg = attrs.evolve(config(), timeouts=Timeouts(request=600, bootstrap=0.5))
    with DecodeManager(select("local"), pools(), Topology(), cfg) as decode:
        receiver = decode.receiver(nowhere, RoomId(1))
        receiver.init()
        receiver.send_metadata([1], None)
        assert receiver.wait(Deadline.after(60)) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.happened == f"the bootstrap service at {nowhere} cannot be reached"
        assert re.fullmatch(r"asked \d+ times? in [\d.]+ s: Connection refused", failure.there_is)
