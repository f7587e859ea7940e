"""One request on the side that receives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pdcore.model import KVPoll, PeerIdentity
from pdcore.protocol.groups import GroupKey
from pdcore.protocol.room import Room
from pdcore.wire import Digests, RequestMetadata, Route

if TYPE_CHECKING:
    from pdcore.protocol.peer import PrefillGroup

__all__ = ["ReceiveRoom"]


@attrs.define(eq=False)
class ReceiveRoom(Room):
    """``default`` is the group that it has unless another is chosen: ``group``, by ``key``. ``wanted`` is
    where it shall land.

    Once it is ``asking``, all ``asked`` were, of whom the ``senders`` send. ``writers`` may write;
    ``responded`` have said that all is sent; ``standing`` is what they wait for. So many ``rows`` that came
    by message are being written.

    Who ``packs`` is no writer: this side takes its bytes out of slots. By rank and number, uses of slots are
    ``unpacking`` or ``unpacked``; a rank that has sent all has ``packed`` so many.
    """

    default: GroupKey = attrs.field(kw_only=True)
    key: GroupKey | None = None
    group: PrefillGroup | None = None
    wanted: RequestMetadata | None = None
    asking: bool = False
    asked: tuple[PeerIdentity, ...] = ()
    senders: frozenset[PeerIdentity] = frozenset()
    writers: set[PeerIdentity] = attrs.field(factory=set)
    rows: int = 0
    responded: set[PeerIdentity] = attrs.field(factory=set)
    standing: dict[PeerIdentity, str] = attrs.field(factory=dict)
    announced_at: float | None = None
    inquired: bool = False
    checking: bool = False
    unpacking: set[tuple[PeerIdentity, int]] = attrs.field(factory=set)
    unpacked: set[tuple[PeerIdentity, int]] = attrs.field(factory=set)
    packed: dict[PeerIdentity, int] = attrs.field(factory=dict)
    uncompared: list[tuple[Route, PeerIdentity, Digests]] = attrs.field(factory=list)
    """Digests that came before some of what they are of."""

    @property
    def at_rest(self) -> bool:
        return not self.writers and not self.rows and not self.unpacking

    @property
    def arrived(self) -> bool:
        """Whether all that send have said that all is sent, and what came packed is taken out."""
        if not self.asking or not self.responded >= self.senders:
            return False
        return len(self.unpacked) >= sum(self.packed.values())

    def ask(self, group: PrefillGroup, now: float) -> None:
        """Ask all of a group: from now on those that send may write."""
        self.asking, self.first_at = True, now
        self.senders, self.asked = group.writers, group.asked
        self.writers = {member.identity for member in group.senders if not member.packs}
        self.rise(KVPoll.TRANSFERRING)
