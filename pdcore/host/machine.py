"""The addresses of this machine: where a side listens, and what it tells peers to dial.

A wildcard, the name of an interface, or a name becomes an address when a side starts, and is refused
then if it cannot: what is told to peers is never a wildcard.
"""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs

from pdcore.errors import AddressError
from pdcore.host.address import ANY, is_loopback, is_wildcard, join, numeric, parse_advertised, parse_host

__all__ = ["HostPlace", "find_place", "interface_addresses", "listen"]

ANY_IPV4 = "0.0.0.0"  # noqa: S104 - who asks for all addresses gets them
BACKLOG = 128
_SIOCGIFADDR = 0x8915
_INET6_TABLE = Path("/proc/net/if_inet6")
_FAR = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses elsewhere (RFC 5737 and 3849): the route to them is looked up, nothing is sent."""
_log = logging.getLogger("pdcore.machine")


@attrs.frozen
class HostPlace:
    """Where a side listens (an address of this machine, or a wildcard), and what peers are told.

    ``advertised`` is a host; ``advertised_port`` is None where peers are told the port that is bound.
    """

    listens: str
    advertised: str
    advertised_port: int | None = None

    def address(self, port: int) -> str:
        """Return the address that peers dial, if ``port`` is bound."""
        return join(self.advertised, self.advertised_port or port)


def find_place(host: str, advertise: str | None = None) -> HostPlace:
    """Return where to listen for ``host``, and what to tell peers: ``advertise``, or what ``host`` is.

    ``host`` is an address of this machine, a name of it, one of its interfaces (``eth0``: its IPv4 address
    before its IPv6 one), or a wildcard (``0.0.0.0``, ``::``, ``*``: both families). Without ``advertise`` a
    wildcard's peers are told the source address of the default route, which is logged.

    Raises:
        AddressError: it is none of this machine, does not resolve, or cannot be told to peers.
    """
    host = parse_host(host, "host")
    listens = _wildcard(host) if is_wildcard(host) else _own(host)
    if advertise is not None:
        told, port = parse_advertised(advertise, "advertise")
        return HostPlace(listens, _told(told), port)
    if not is_wildcard(listens):
        return HostPlace(listens, listens)
    families = [socket.AF_INET6, socket.AF_INET] if host == "::" else [socket.AF_INET, socket.AF_INET6]
    reached = _reached_by_others(families if ":" in listens else [socket.AF_INET])
    if reached is None:
        raise AddressError(
            f"host {host!r} is a wildcard, and no address is known by which others reach this machine",
            f"it has no default route; its interfaces: {_interfaces()}",
            "set advertise (PDCORE_ADVERTISE) to what peers shall dial, or host to one address",
        )
    _log.info("host %s: peers are told %s (set advertise to tell them another address)", host, reached)
    return HostPlace(listens, reached)


def listen(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens at an address of this machine; ``::`` takes IPv4 as well.

    Raises:
        OSError: the port is in use, or the address is not of this machine.
    """
    family, where = _sockaddr(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not is_wildcard(host)))
        listener.bind(where)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def interface_addresses(name: str) -> list[str]:
    """Return the addresses of an interface: IPv4, then IPv6, then link-local with its scope."""
    found = []
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asking:
        request = struct.pack("16s24x", name.encode()[:15])
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFADDR, request)
            found.append(socket.inet_ntoa(answer[20:24]))
        except OSError:  # it has none
            pass
    own = [address for interface, address in _inet6() if interface == name]
    return found + sorted(own, key=lambda address: "%" in address)


def _inet6() -> Iterator[tuple[str, str]]:
    try:
        table = _INET6_TABLE.read_text().splitlines()
    except OSError:  # a kernel without IPv6
        return
    for line in table:
        digits, *_, interface = line.split()
        address = ipaddress.IPv6Address(int(digits, 16))
        yield interface, f"{address}%{interface}" if address.is_link_local else str(address)


def _wildcard(host: str) -> str:
    candidates = ["::", ANY_IPV4] if host == ANY else [host]
    return next((c for c in candidates if _can(*_sockaddr(c, 0))), "") or _own(host)


def _own(host: str) -> str:
    """Return an address of this machine in numbers."""
    if host in _interface_names():
        candidates = interface_addresses(host)
        if not candidates:
            raise AddressError(
                f"host {host!r} is an interface without an address",
                f"the interfaces of this machine: {_interfaces()}",
                "name another, give it an address, or set host to an address",
            )
    elif numeric(host) is not None:
        candidates = [host, *(a for _, a in _inet6() if a.partition("%")[0] == host and "%" in a)]
    else:
        candidates = _resolved(host)
    for candidate in candidates:
        if _can(*_sockaddr(candidate, 0)):
            return candidate
    raise AddressError(
        f"host {host!r} is not an address of this machine",
        f"it stands for {', '.join(candidates)}; the interfaces of this machine: {_interfaces()}",
        "set host to an address that this machine has; what peers dial instead of it goes into advertise",
    )


def _resolved(name: str) -> list[str]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AddressError(
            f"host {name!r} does not resolve, and is no interface of this machine",
            f"{error}; the interfaces of this machine: {_interfaces()}",
            "set host to an address, to the name of one, or to an interface",
        ) from error
    # IPv4 first: a name that has both is dialled by peers of which some have IPv4 alone.
    ordered = sorted(answers, key=lambda answer: answer[0] != socket.AF_INET)
    return list(dict.fromkeys(str(answer[4][0]) for answer in ordered))


def _told(advertised: str) -> str:
    """Return the host that peers are told. They resolve a name: it may not be known here, or not yet."""
    if advertised in _interface_names():
        return _own(advertised)
    if numeric(advertised) is None:
        try:
            socket.getaddrinfo(advertised, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            _log.warning("advertise %s does not resolve on this machine (%s)", advertised, error)
    return advertised


def _reached_by_others(families: list[socket.AddressFamily]) -> str | None:
    for family in families:
        try:
            with closing(socket.socket(family, socket.SOCK_DGRAM)) as asking:
                asking.connect((_FAR[family], 9))
                source = str(asking.getsockname()[0])
        except OSError:  # no route, or no such family
            continue
        if not is_loopback(source) and not is_wildcard(source):
            return source
    return None


def _sockaddr(host: str, port: int) -> tuple[int, tuple[str, int] | tuple[str, int, int, int]]:
    family, *_, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )[0]
    return family, where  # type: ignore[return-value]  # of these families, these are the addresses


def _can(family: int, where: tuple[str, int] | tuple[str, int, int, int]) -> bool:
    """Whether a socket can be bound there."""
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.bind(where)
    except OSError:
        return False
    return True


def _interface_names() -> list[str]:
    try:
        return [name for _, name in socket.if_nameindex()]
    except OSError:
        return []


def _interfaces() -> str:
    return ", ".join(f"{n} ({', '.join(interface_addresses(n)) or 'no address'})" for n in _interface_names())
