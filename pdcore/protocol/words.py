"""Why rooms and pairings end, in words: what happened, what there is, what to do."""

from __future__ import annotations

from pdcore.errors import AuthenticationError, FailureCode, IncompatiblePeerError, KVTransferError, Misfit
from pdcore.model import Incarnation, KVPoll, PeerIdentity, RoomId
from pdcore.protocol.groups import GroupKey
from pdcore.protocol.send.lives import Life


def aborted(side: str, room: RoomId) -> KVTransferError:
    """Return why a room fails that its own side gave up."""
    return KVTransferError(
        FailureCode.ABORTED,
        f"{side} aborted room {room}",
        "abort() was called",
        "send the request again if it is still wanted",
    )


def lost_peer(peer: PeerIdentity, room: int, why: str) -> KVTransferError:
    """Return why a room fails that was promised to a peer which is lost."""
    happened = f"room {room} lost its peer {peer}"
    return KVTransferError(FailureCode.PEER_LOST, happened, why, "send the request to another decode worker")


def gone(peer: PeerIdentity, why: str) -> KVTransferError:
    """Return the failure of a rank that left, or that is not heard of any more."""
    to_do = "send the request to another prefill worker"
    return KVTransferError(FailureCode.PEER_LOST, f"lost {peer}", why, to_do)


def replaced(peer: PeerIdentity, by: Incarnation) -> KVTransferError:
    """Return the failure of a rank at whose address another process runs now."""
    return KVTransferError(
        FailureCode.PEER_LOST,
        f"lost {peer}",
        f"incarnation {by[:8]} runs there now",
        "send the request again; the next one pairs with it",
    )


def turned_away(peer: PeerIdentity, error: AuthenticationError) -> KVTransferError:
    """Return the failure of a rank that will have nothing to do with this side."""
    happened = f"cannot pair with {peer}: {error.happened}"
    return KVTransferError(FailureCode.UNAUTHENTICATED, happened, error.there_is, error.to_do)


def indescribable(peer: PeerIdentity, size: int, limit: int) -> KVTransferError:
    """Return the failure of a rank that cannot be told what this side is."""
    return KVTransferError(
        FailureCode.INCOMPATIBLE,
        f"cannot pair with {peer}: what describes this side does not fit a control message",
        f"{size} bytes, control.max_message_bytes is {limit}",
        "raise control.max_message_bytes on both sides",
    )


def no_ring(peer: PeerIdentity, rings: int, in_doubt: int) -> KVTransferError:
    """Return why a peer cannot be paired with that may write to slots only."""
    return KVTransferError(
        FailureCode.ENGINE,
        f"no staging ring is left for {peer}, and transfer.staging is 'always'",
        f"{rings} rings, of which {in_doubt} wait until lost peers are known to write no more",
        "raise transfer.staging_rings, or look why those peers are lost",
    )


def misfits(peer: PeerIdentity | GroupKey, found: tuple[Misfit, ...]) -> KVTransferError:
    """Return the failure of a rank, or a group of them, that does not fit."""
    error = IncompatiblePeerError(str(peer), found)
    return KVTransferError(FailureCode.INCOMPATIBLE, error.happened, error.there_is, error.to_do)


def not_paired_in_time(key: GroupKey, seconds: float) -> KVTransferError:
    """Return the failure of all who waited for a group; ``seconds`` is ``timeouts.pairing``."""
    return KVTransferError(
        FailureCode.DEADLINE,
        f"{key} did not pair in time",
        f"timeouts.pairing is {seconds:g} s",
        "look whether that prefill worker is stuck; raise timeouts.pairing if its engine is slow",
    )


def not_paired(room: RoomId, address: str) -> KVTransferError:
    """Return that somebody asked for a room whom the prefill rank at ``address`` doesn't know."""
    return KVTransferError(
        FailureCode.PEER_LOST,
        f"prefill {address} is not paired with who asked for room {room}",
        "it lost its peer, or was started anew",
        "send the request again; the next one pairs anew",
    )


def ended_before(life: Life, rank: int, now: float) -> KVTransferError:
    """Return what to tell decode rank ``rank``, which comes for a life that has ended."""
    failure, ended = life.failure, life.ended_at
    if failure is None:
        return taken(life, rank)
    ago = f"prefill ended the room {now - ended:.1f} s before" if ended else "prefill ended the room before"
    return KVTransferError(failure.code, failure.happened, f"{failure.there_is}; {ago}", failure.to_do)


def taken(life: Life, rank: int) -> KVTransferError:
    """Return why decode rank ``rank`` cannot have a room that another decode worker has."""
    promise = life.promised.get(rank)
    holders = [promise] if promise else list(life.promised.values())
    got = life.status is KVPoll.SUCCESS
    return KVTransferError(
        FailureCode.ABORTED,
        f"room {life.room} {'went' if got else 'is promised'} to another decode worker",
        f"{', '.join(str(identity) for *_, identity in holders)} {'got it' if got else 'asked first'}",
        "hand each request to one decode worker, with a room id of its own",
    )


def broken(side: str, room: RoomId, error: BaseException) -> KVTransferError:
    """Return why a room fails for which something raised that should not have."""
    return KVTransferError(
        FailureCode.ENGINE,
        f"something raised on the {side} side while it worked on room {room}",
        repr(error),
        f"look at the {side} side's log, and report it",
    )


def raised(at: str, error: BaseException) -> KVTransferError:
    """Return why a pairing, or the look-up of a group, fails at which something raised."""
    return KVTransferError(FailureCode.ENGINE, f"{at} raised", repr(error), "look at the log, and report it")


def unheard_of(room: RoomId) -> KVTransferError:
    """Return why a room fails whose request prefill does not know."""
    return KVTransferError(
        FailureCode.PEER_LOST,
        f"prefill does not know the request of room {room}",
        "it was lost with a connection, or its room has ended, too long ago to tell how",
        "send the request again",
    )


def superseded(room: RoomId) -> KVTransferError:
    """Return why a room fails whose decode rank speaks of the next life of its id."""
    return KVTransferError(
        FailureCode.ABORTED,
        f"decode gave room {room} up",
        "it uses the room id for another request by now; its word of that was lost",
        "clear() the room, and open it again for the other request",
    )


def asked_again(room: RoomId, first: PeerIdentity, then: PeerIdentity) -> KVTransferError:
    """Return why a request fails in whose place another came before prefill opened its room."""
    return KVTransferError(
        FailureCode.ABORTED,
        f"room {room} was asked for again before prefill opened it",
        f"{first} asked first, then {then}",
        "use one room id per request",
    )


def too_many(capacity: int) -> KVTransferError:
    """Return why a request fails for which prefill has no room left to keep it."""
    return KVTransferError(
        FailureCode.ABORTED,
        "prefill holds too many requests that it opened no room for",
        f"{capacity} requests",
        "send every request to both sides",
    )


def unexplained(room: RoomId) -> KVTransferError:
    """Return how a room ends that prefill failed without a reason."""
    happened = f"prefill failed room {room}"
    return KVTransferError(FailureCode.ENGINE, happened, "it gave no reason", "look at its log")
