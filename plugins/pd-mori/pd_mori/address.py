"""Addresses of MORI's control plane: a wrong one of ours ends the process, a dead peer's stalls others."""

from __future__ import annotations

import ipaddress
import socket

from pdcore.errors import EngineError
from pdcore.model import Deadline

__all__ = ["ask", "check_host"]


def check_host(host: str) -> None:
    """Check that MORI can listen at ``host``, and tell it to peers.

    Raises:
        EngineError: it is no dotted IPv4 address of this machine. MORI would end the process, or announce
            an address that nobody can connect to.
    """
    try:
        if ipaddress.IPv4Address(host).is_unspecified:
            raise ValueError("it means all addresses, and peers need one")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((host, 0))
    except (ValueError, OSError) as error:
        raise EngineError(
            "MORI needs an IPv4 address of this machine, in digits",
            f"host {host!r}: {error}",
            "set host or advertise to one by which peers reach this machine (PDCORE_HOST=10.0.0.1)",
        ) from error


def ask(host: str, port: int, deadline: Deadline) -> OSError | None:
    """Connect to a peer's control port and hang up; return why that fails, or None."""
    try:
        socket.create_connection((host, port), max(deadline.remaining(), 0.001)).close()
    except OSError as error:
        return error
    return None
