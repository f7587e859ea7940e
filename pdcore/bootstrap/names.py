"""Names under which prefill ranks are registered, made into what the control channel can dial."""

from __future__ import annotations

import asyncio
import socket

import attrs

from pdcore.bootstrap.record import RankGroup, RankRecord
from pdcore.errors import BootstrapError
from pdcore.host.address import join, numeric, parse_address

__all__ = ["dialable"]


async def dialable(group: RankGroup) -> RankGroup:
    """Return the group with its names resolved where that is needed; most have numbers, and cost nothing.

    ZeroMQ looks a name up in one family: IPv4, so that one without an IPv4 address is replaced by its other.

    Raises:
        BootstrapError: a name does not resolve on this machine.
    """
    return RankGroup(tuple([await _dialable(record) for record in group.ranks]))


async def _dialable(record: RankRecord) -> RankRecord:
    host, port = attrs.astuple(parse_address(record.address))
    if numeric(host) is not None:
        return record
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BootstrapError(
            f"prefill rank {record.topology.unique_rank} is registered as {record.address}, which does not "
            "resolve here",
            str(error),
            "let prefill advertise what decode can dial (PDCORE_ADVERTISE), or make the name known here",
        ) from error
    if any(family == socket.AF_INET for family, *_ in found):
        return record
    return attrs.evolve(record, address=join(str(found[0][4][0]), port))
