"""What a room of prefill waits for, and of whom, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pdcore.model import PeerIdentity
from pdcore.rooms.status import Awaited

__all__ = ["of_decode", "of_prefill", "of_source", "of_transfers"]


def of_decode(
    asked: Mapping[int, PeerIdentity], asking: Collection[int], guests: Sequence[PeerIdentity], paired: int
) -> Awaited:
    """Return that decode ranks have not asked for the room.

    ``asked`` are those that did, by unique rank, of the group of which the ranks ``asking`` shall;
    ``guests`` have the room open and have not named their pages; ``paired`` decode ranks are known.
    """
    open_there = f"; {_names(guests)} has it open and has not named its pages" if guests else ""
    if asked:
        missing = sorted(rank for rank in asking if rank not in asked)
        return Awaited(
            f"decode rank{'s' if len(missing) > 1 else ''} {_numbers(missing)} of {_numbers(sorted(asking))} "
            f"{'have' if len(missing) > 1 else 'has'} not asked for it, {_names(list(asked.values()))} has"
            + open_there,
            "look why those ranks did not call send_metadata(): they need the same requests as the others",
        )
    if guests:
        return Awaited(
            f"no decode rank has asked for it{open_there}",
            "look why decode did not call send_metadata(): has it pages free?",
        )
    return Awaited(
        f"no decode rank has asked for it or said that it has it open; {paired} are paired",
        "look whether the request reached decode, with this room id and this prefill's bootstrap address",
    )


def of_prefill(announced: int | None, sent: int, asked: Sequence[PeerIdentity]) -> Awaited:
    """Return that decode has asked, and prefill's own scheduler has not handed in all pages."""
    if announced is None:
        what = "prefill's init() and send()"
    else:
        what = f"prefill's send(): {sent} of {announced} pages have come"
    return Awaited(f"{what}; {_names(asked)} has asked", "look why prefill is slow, or raise the deadline")


def of_source(pages: int, start: int) -> Awaited:
    """Return that pages were handed in, and what fills them is not known to be done."""
    return Awaited(
        f"the ready of prefill's send() of {pages} pages, from page {start} of the request on",
        "look why what fills them is slow, or whether its event is ever recorded, or raise the deadline",
    )


def of_transfers(in_flight: Mapping[PeerIdentity, int], chunks: int) -> Awaited:
    """Return that chunks are under way, or, if none is, that decode has yet to verify what arrived."""
    if not in_flight:
        return Awaited("decode's verdict on what arrived", "look why decode is slow; see transfer.verify")
    rows = (f"{count} of {chunks} chunks to {peer}" for peer, count in in_flight.items())
    return Awaited(
        f"{', '.join(rows)} {'is' if len(in_flight) == 1 else 'are'} under way",
        "look why the network or that decode worker is slow, or raise the deadline",
    )


def _names(peers: Sequence[PeerIdentity]) -> str:
    return ", ".join(map(str, peers[:4])) + (f" and {len(peers) - 4} more" if len(peers) > 4 else "")


def _numbers(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
