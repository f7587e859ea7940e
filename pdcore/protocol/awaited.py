"""What a room waits for, and of whom, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pdcore.model import PeerIdentity
from pdcore.protocol.groups import GroupKey
from pdcore.protocol.peer import RemoteRank
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.room import Awaited
from pdcore.protocol.send.send_room import SendRoom

__all__ = ["of_receiving", "of_sending"]

NO_INIT = Awaited("decode's init(), which was not called", "call init() when a request arrives")
NO_METADATA = Awaited(
    "decode's send_metadata(), which was not called; prefill is paired",
    "look why decode has no pages for the request, or raise the deadline",
)


def of_sending(room: SendRoom, guests: Sequence[PeerIdentity], paired: int) -> Awaited:
    """Return what a room that sends waits for; ``guests`` have it open, ``paired`` ranks are known."""
    asked = {d.peer.rank: d.peer.identity for d in room.destinations}
    if not room.complete:
        asking = room.destinations[0].peer.facts.asking if room.destinations else ()
        return _of_decode(asked, asking, guests, paired)
    if room.unready is not None:
        return _of_source(len(room.unready.pages), room.unready.start)
    if not room.supplied:
        return _of_prefill(room.announced, room.sent, list(asked.values()))
    in_flight = {asked[rank]: count for rank, count in room.in_flight().items()}
    return _of_transfers(in_flight, room.chunks)


def of_receiving(room: ReceiveRoom, trouble: Mapping[str, str]) -> Awaited:
    """Return what a room that receives waits for; ``trouble`` is why bootstrap services are not reached."""
    group = room.group
    if group is None:
        return NO_INIT
    if not group.members:
        return _of_bootstrap(group.key, trouble.get(group.key.bootstrap, ""))
    if not room.asking and not group.ready:
        missing = ", ".join([_rank(m) for m in group.members if not m.ready][:4])
        return Awaited(
            f"{missing} of {len(group.members)}, which did not answer the request to pair",
            "look whether those workers run, can be reached at these addresses, and are not stuck",
        )
    if room.wanted is None:
        return NO_METADATA
    late = [sender for sender in group.senders if sender.identity not in room.responded]
    rows = [f"{_rank(sender)}, which {_stands(room.standing.get(sender.identity))}" for sender in late[:4]]
    return Awaited(
        "; ".join(rows) + (f"; and {len(late) - 4} more" if len(late) > 4 else ""),
        "look whether the request reached prefill with this room id, and why it is slow there; or raise "
        "the deadline",
    )


def _of_bootstrap(group: GroupKey, trouble: str) -> Awaited:
    if trouble:
        return Awaited(
            f"the bootstrap service at {group.bootstrap}: {trouble}",
            "check the address, and that the prefill side's bootstrap service runs",
        )
    return Awaited(
        f"{group}, whose ranks have not all registered there",
        "look whether all prefill ranks of that replica run and register there",
    )


def _rank(peer: RemoteRank) -> str:
    return f"prefill rank {peer.rank} at {peer.identity.address}"


def _stands(standing: str | None) -> str:
    return f"awaits {standing}" if standing else "has not said how the room stands there"


def _of_decode(
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


def _of_prefill(announced: int | None, sent: int, asked: Sequence[PeerIdentity]) -> Awaited:
    """Return that decode has asked, and prefill's own scheduler has not handed in all pages."""
    if announced is None:
        what = "prefill's init() and send()"
    else:
        what = f"prefill's send(): {sent} of {announced} pages have come"
    return Awaited(f"{what}; {_names(asked)} has asked", "look why prefill is slow, or raise the deadline")


def _of_source(pages: int, start: int) -> Awaited:
    """Return that pages were handed in, and what fills them is not known to be done."""
    return Awaited(
        f"the ready of prefill's send() of {pages} pages, from page {start} of the request on",
        "look why what fills them is slow, or whether its event is ever recorded, or raise the deadline",
    )


def _of_transfers(in_flight: Mapping[PeerIdentity, int], chunks: int) -> Awaited:
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
