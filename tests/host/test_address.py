from __future__ import annotations

import contextlib
import ipaddress
import random
from collections.abc import Callable

import pytest

from pdcore.bootstrap import RankRecord
from pdcore.config.records import Config
from pdcore.errors import AddressError, ConfigError
from pdcore.host.address import (
    Address,
    is_loopback,
    is_wildcard,
    join,
    numeric,
    parse_address,
    parse_advertised,
    parse_host,
)
from pdcore.model import new_incarnation
from pdcore.pairing.topology import Topology

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_-"


def random_host(rng: random.Random) -> str:
    """Return a host in its one form: of either family, with a scope, or a name."""
    kind = rng.randrange(4)
    if kind == 0:
        return str(ipaddress.IPv4Address(rng.randrange(1, 224 << 24)))
    if kind == 1:  # with runs of zeros, which are written short
        groups = [0xFD00, *(rng.choice((0, 0, 0, rng.getrandbits(16))) for _ in range(7))]
        return str(ipaddress.IPv6Address(sum(group << 16 * n for n, group in enumerate(reversed(groups)))))
    if kind == 2:
        return f"{ipaddress.IPv6Address(0xFE80 << 112 | rng.getrandbits(64))}%eth{rng.randrange(10)}"
    labels = ["".join(rng.choices(LETTERS, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 4))]
    return ".".join(["n", *labels])


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read_back(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        host = random_host(rng)
        port = rng.randint(1, 65_535)
        assert parse_host(host) == host
        assert parse_host(f"[{host}]") == host if ":" in host else True
        address = Address(host, port)
        assert parse_address(str(address)) == address
        assert str(parse_address(str(address))) == join(host, port) == str(address)
        assert parse_advertised(str(address)) == (host, port)
        assert parse_advertised(host) == (host, None)
        if ":" in host:  # without brackets the last colon separates the port, since one is always there
            assert parse_address(f"{host}:{port}") == address
            bare, percent, scope = host.partition("%")
            long = ipaddress.IPv6Address(bare).exploded.upper()
            assert parse_address(f"[{long}{percent}{scope}]:{port}") == address
        assert (numeric(host) is None) == host.startswith("n.")
        assert not is_wildcard(host)


@pytest.mark.parametrize("seed", range(5))
def test_any_text_is_an_address_or_a_typed_refusal(seed: int) -> None:
    rng = random.Random(seed)
    parts = [
        "",
        ":",
        "::",
        "[",
        "]",
        "%",
        "1",
        "eth0",
        "255",
        "65535",
        "65536",
        "-1",
        "fe80",
        "host",
        ".",
        "*",
        " ",
    ]
    parts += ["/", "://", "http", "0x1", "\0", "\n", "é", "٣", "1" * 40, "a" * 300, "::1", "10.0.0.1", "8998"]
    readers: tuple[Callable[[object], object], ...] = (parse_host, parse_address, parse_advertised)
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randint(0, 7)))
        for read in readers:
            with contextlib.suppress(AddressError):
                found = read(text)
                # What is taken has one form, and that is taken as it is.
                assert isinstance(found, tuple) or read(str(found)) == found


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("FD00::00AB", "fd00::ab"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("*", "*"),
        ("[::]", "::"),
        ("Prefill-0.pd_core.svc", "Prefill-0.pd_core.svc"),
        ("eth0.100", "eth0.100"),
        ("prefill.", "prefill."),
    ],
)
def test_a_host_has_one_form(given: str, host: str) -> None:
    assert parse_host(given) == host


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [
        ("[::1]:8998", "::1", 8998),
        ("::1:8998", "::1", 8998),
        ("fe80::1%eth0:8998", "fe80::1%eth0", 8998),
        ("[fe80::1%eth0]:8998", "fe80::1%eth0", 8998),
        ("localhost:1", "localhost", 1),
        ("10.0.0.1:65535", "10.0.0.1", 65_535),
    ],
)
def test_an_address_is_a_host_and_a_port(given: str, host: str, port: int) -> None:
    assert parse_address(given) == Address(host, port)


NO_ADDRESSES: tuple[tuple[object, str], ...] = (
    ("", "it has no port"),
    ("host", "it has no port"),
    (":8998", "it has no host"),
    ("host:", "it has no port"),
    ("host:port", "its port 'port' is no number"),
    ("host:port:x", "its port 'x' is no number"),
    ("host:1:2", "it has too many colons"),
    ("h:99999", "its port 99999 does not lie in 1..65535"),
    ("h:0", "its port 0 does not lie in 1..65535"),
    ("h:-1", "its port '-1' is no number"),
    ("h:٣", "is no number"),
    ("http://h:1", "it is a URL"),
    ("tcp://10.0.0.7:8998", "it is a URL"),
    ("h:1/path", "its port '1/path' is no number"),
    ("::1", "it has no port"),
    ("fd00:0:0:0:0:0:0:1", "it has no port"),
    ("10.0.0.1", "it has no port"),
    ("[::1]", "it has no port"),
    ("[::1", "brackets"),
    ("[::1]8998", "brackets"),
    ("[10.0.0.1]:1", "it is no IPv6 address"),
    ("[host]:1", "it is no IPv6 address"),
    ("fe80::1%:1", "its scope"),
    ("[fe80::1%e 0]:1", "its scope"),
    ("10.0.0:1", "it is no IPv4 address"),
    ("10.0.0.256:1", "it is no IPv4 address"),
    ("0x7f000001:1", "it is no IPv4 address"),
    ("127.1:1", "it is no IPv4 address"),
    ("a b:1", "neither an address nor a name"),
    ("-a:1", "neither an address nor a name"),
    ("a..b:1", "neither an address nor a name"),
    ("h\n:1", "neither an address nor a name"),
    ("a" * 254 + ":1", "254 characters"),
    ("a" * 64 + ":1", "neither an address nor a name"),
    ("0.0.0.0:1", "a wildcard is to listen on"),
    ("[::]:1", "a wildcard is to listen on"),
    ("*:1", "a wildcard is to listen on"),
    ("224.0.0.1:1", "the address of a group"),
    ("255.255.255.255:1", "the address of a group"),
    ("[ff02::1]:1", "the address of a group"),
    (None, "it is text, and this is of type NoneType"),
    (("h", 1), "it is text, and this is of type tuple"),
    (8998, "it is text, and this is of type int"),
    (b"h:1", "it is text, and this is of type bytes"),
)


@pytest.mark.parametrize(("given", "why"), NO_ADDRESSES, ids=lambda value: repr(value)[:24])
def test_what_cannot_be_an_address_is_refused_with_the_reason(given: object, why: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(given, "the address of the bootstrap service")
    assert caught.value.happened.startswith("the address of the bootstrap service cannot be ")
    assert why in caught.value.there_is
    assert caught.value.to_do == "write host:port, like 10.0.0.1:8998, [fd00::2]:8998 or prefill-0:8998"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "given", ["", "h:1", "http://h", "1.2.3", "[::1]:1", "[h]", " h", "224.0.0.1", None, 3]
)
def test_what_cannot_be_a_host_is_refused(given: object) -> None:
    with pytest.raises(AddressError, match="host cannot be"):
        parse_host(given, "host")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("203.0.113.7", ("203.0.113.7", None)),
        ("203.0.113.7:30998", ("203.0.113.7", 30_998)),
        ("fd00::2", ("fd00::2", None)),
        ("fd00::2:8998", ("fd00::2:8998", None)),
        ("[fd00::2]", ("fd00::2", None)),
        ("[fd00::2]:8998", ("fd00::2", 8998)),
        ("node-7:8998", ("node-7", 8998)),
    ],
)
def test_what_is_advertised_may_have_a_port(given: str, told: tuple[str, int | None]) -> None:
    assert parse_advertised(given) == told


@pytest.mark.parametrize(
    "given", ["", "*", "0.0.0.0", "::", "[::]:1", "0.0.0.0:1", "h:x", "h:0", "http://h", None]
)
def test_what_peers_cannot_be_told_is_refused(given: object) -> None:
    with pytest.raises(AddressError, match="advertise cannot be"):
        parse_advertised(given, "advertise")


def test_hosts_are_told_apart() -> None:
    assert [is_wildcard(h) for h in ("*", "0.0.0.0", "::", "::1", "h")] == [True, True, True, False, False]
    here = ("127.0.0.1", "127.8.8.8", "::1", "localhost", "LocalHost.")
    assert all(map(is_loopback, here))
    assert not any(map(is_loopback, ("10.0.0.1", "::", "fe80::1%lo", "h", "*")))


@pytest.mark.parametrize("address", ["::1:5", "[0::1]:5", "h", "h:0", "0.0.0.0:5", "[::]:5", "h:05"])
def test_a_rank_is_registered_at_an_address_in_its_one_form(address: str) -> None:
    with pytest.raises(AddressError):
        RankRecord(new_incarnation(), address, Topology(), 5.0)
    good = "[fe80::1%eth0]:5"
    assert RankRecord(new_incarnation(), good, Topology(), 5.0).address == good


@pytest.mark.parametrize("value", ["", "h:1", "1.2.3", "http://h", "a b"])
def test_a_configured_host_that_cannot_be_one_is_a_configuration_error(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"host \(from code\): must be a name or an address of this machine"
    ):
        Config(host=value)
    Config(host="*", advertise="[fd00::2]:8998")


@pytest.mark.parametrize("value", ["", "0.0.0.0", "*", "[::]:5", "h:x"])
def test_a_configured_address_that_cannot_be_advertised_is_a_configuration_error(value: str) -> None:
    with pytest.raises(
        ConfigError, match=r"advertise \(from code\): must be what peers dial, host or host:port"
    ):
        Config(advertise=value)
