"""One request on the side that receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from pdcore.model import KVPoll, PeerIdentity
from pdcore.protocol.groups import GroupKey
from pdcore.protocol.room import Room
from pdcore.wire import RequestMetadata, Route

if TYPE_CHECKING:
    from pdcore.protocol.peer import PrefillGroup

__all__ = ["ReceiveRoom"]


@attrs.define(eq=False)
class ReceiveRoom(Room):
    """``default`` is the group that it has unless another is chosen: ``group``, by ``key``. ``wanted`` is
    where it shall land.

    Once it is ``asking``, all whose ``routes`` it has were asked, of whom the ``senders`` send. ``writers``
    may write; ``responded`` have said that all is sent; ``standing`` is what they wait for. So many ``rows``
    that came by message are being written.
    """

    default: GroupKey = attrs.field(kw_only=True)
    key: GroupKey | None = None
    group: PrefillGroup | None = None
    wanted: RequestMetadata | None = None
    asking: bool = False
    senders: frozenset[PeerIdentity] = frozenset()
    routes: Mapping[PeerIdentity, Route] = attrs.field(factory=dict)
    writers: set[PeerIdentity] = attrs.field(factory=set)
    rows: int = 0
    responded: set[PeerIdentity] = attrs.field(factory=set)
    standing: dict[PeerIdentity, str] = attrs.field(factory=dict)
    announced_at: float | None = None
    inquired: bool = False
    checking: bool = False

    @property
    def at_rest(self) -> bool:
        return not self.writers and not self.rows

    def ask(self, group: PrefillGroup, now: float) -> None:
        """Ask all of a group: from now on those that send may write."""
        self.asking, self.first_at = True, now
        self.senders, self.routes = group.writers, group.routes
        self.writers = set(group.writers)
        self.rise(KVPoll.TRANSFERRING)
