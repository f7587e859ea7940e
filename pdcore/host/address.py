"""Network addresses as text: read, checked, and written in one form. Nothing here asks the system.

A *host* is an IPv4 or an IPv6 address (with or without brackets; a link-local one with its scope:
``fe80::1%eth0``), or a name. An *address* is a host and a port, ``10.0.0.1:8998`` or ``[fd00::2]:8998``;
since it always has a port, the last colon of an unbracketed IPv6 address separates that.
"""

from __future__ import annotations

import re
import reprlib
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

import attrs

from pdcore.errors import AddressError

__all__ = [
    "ANY",
    "Address",
    "is_loopback",
    "is_wildcard",
    "join",
    "numeric",
    "parse_address",
    "parse_advertised",
    "parse_host",
]

ANY = "*"
"""All addresses of a machine, of both families."""
MAX_HOST = 253
"""Characters of a name at most (RFC 1035)."""
PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
_NUMBERS = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)(\.(0[xX][0-9a-fA-F]*|[0-9]+))*\.?", re.ASCII)
_SCOPE = re.compile(r"[\w.-]+", re.ASCII)
WRITE_HOST = "write a name, or an address like 10.0.0.1, fd00::2 or fe80::1%eth0"
WRITE_ADDRESS = "write host:port, like 10.0.0.1:8998, [fd00::2]:8998 or prefill-0:8998"


@attrs.frozen
class Address:
    """A host (without brackets) and a port; as text with brackets around IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return join(self.host, self.port)


def join(host: str, port: int | str) -> str:
    """Return ``host:port``, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def numeric(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is; None if it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_wildcard(host: str) -> bool:
    """Whether it stands for all addresses of a machine: to listen on, and nothing that peers can dial."""
    found = numeric(host)
    return host == ANY or (found is not None and found.is_unspecified)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; of names, only ``localhost`` is known to be so."""
    found = numeric(host)
    return found.is_loopback if found is not None else host.rstrip(".").lower() == "localhost"


def parse_host(value: object, what: str = "a host") -> str:
    """Return a host in its one form: without brackets, numbers as the standards write them.

    ``*`` and the other wildcards are hosts: who wants to dial asks :func:`is_wildcard`.

    Raises:
        AddressError: it cannot be one, and why.
    """
    text = _text(value, what, WRITE_HOST)
    host, reason = _read_host(text)
    if reason:
        raise AddressError(f"{what} cannot be {_shown(text)}", reason, WRITE_HOST)
    return host


def parse_address(value: object, what: str = "an address") -> Address:
    """Return the host and the port of an address that can be dialled.

    Raises:
        AddressError: it cannot be one, and why.
    """
    text = _text(value, what, WRITE_ADDRESS)
    found = _read_address(text)
    if isinstance(found, str):
        raise AddressError(f"{what} cannot be {_shown(text)}", found, WRITE_ADDRESS)
    return found


def parse_advertised(value: object, what: str = "an advertised address") -> tuple[str, int | None]:
    """Return the host and the port, if there is one, of what peers shall be told.

    An IPv6 address without brackets is a host here.

    Raises:
        AddressError: it cannot be one, or is a wildcard.
    """
    text = _text(value, what, WRITE_ADDRESS)
    host, reason = _read_host(text)
    port: int | None = None
    if reason and (text.count(":") == 1 or text.startswith("[")):
        address = parse_address(text, what)
        host, port, reason = address.host, address.port, ""
    if not reason and is_wildcard(host):
        reason = "a wildcard is to listen on, nobody can be reached by it"
    if reason:
        raise AddressError(f"{what} cannot be {_shown(text)}", reason, f"{WRITE_ADDRESS}, or the host alone")
    return host, port


def _text(value: object, what: str, to_do: str) -> str:
    if isinstance(value, str):
        return value
    kind = type(value).__name__
    raise AddressError(f"{what} cannot be {_shown(value)}", f"it is text, and this is of type {kind}", to_do)


def _shown(value: object) -> str:
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = 80
    return shorten.repr(value)


def _split(text: str) -> tuple[str, int, str]:
    """Return host, port, and why it is none."""
    if "://" in text:
        return "", 0, "it is a URL; host and port alone are meant"
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, closed, rest = text.partition("]")
        if not closed or (rest and not rest.startswith(":")):
            return "", 0, "the brackets of its IPv6 host are not closed before the port"
        host, colon, port = f"{host}]", rest[:1], rest[1:]
    if not colon:
        return "", 0, "it has no port"
    if not host:
        return "", 0, "it has no host"
    if not PORT.fullmatch(port):
        return "", 0, f"its port {_shown(port)} is no number" if port else "it has no port"
    if not 1 <= int(port) <= 65_535:
        return "", 0, f"its port {int(port)} does not lie in 1..65535"
    return host, int(port), ""


@lru_cache(maxsize=1024)  # each request names the one of its prefill
def _read_address(text: str) -> Address | str:
    """Return the address, or why it is none."""
    host, port, reason = _split(text)
    if not reason and host.count(":") == 1:
        reason = "it has too many colons"
    if not reason:
        host, reason = _read_host(host)
    if reason and ":" in text and not _read_host(text)[1]:
        reason = "it has no port"
    if not reason and is_wildcard(host):
        reason = "a wildcard is to listen on, nobody can be reached by it"
    return reason or Address(host, port)


def _read_host(text: str) -> tuple[str, str]:
    """Return the host in its one form, and why it is none."""
    if not text:
        return "", "it is empty"
    if text == ANY:
        return ANY, ""
    bracketed = text.startswith("[") and text.endswith("]")
    if bracketed or text.count(":") > 1:
        return _read_ipv6(text[1:-1] if bracketed else text)
    if ":" in text:
        return "", "it is a host alone, and this has a port or a scheme"
    if len(text) > MAX_HOST:
        return "", f"it has {len(text)} characters, a name has {MAX_HOST} at most"
    if _NUMBERS.fullmatch(text):
        try:
            return _usable(IPv4Address(text))
        except ValueError as error:
            return "", f"it is no IPv4 address: {error}"
    if not _NAME.fullmatch(text):
        return "", "it is neither an address nor a name (letters, digits, '-', '_' and '.')"
    return text, ""


def _read_ipv6(text: str) -> tuple[str, str]:
    scope = text.partition("%")[2]
    if "%" in text and not _SCOPE.fullmatch(scope):
        return "", f"its scope {_shown(scope)} is no name of an interface"
    try:
        found = IPv6Address(text)
    except ValueError as error:
        return "", f"it is no IPv6 address: {error}"
    return _usable(found.ipv4_mapped or found)


def _usable(found: IPv4Address | IPv6Address) -> tuple[str, str]:
    if found.is_multicast or found == IPv4Address("255.255.255.255"):
        return "", "it is the address of a group, not of a machine"
    return str(found), ""
