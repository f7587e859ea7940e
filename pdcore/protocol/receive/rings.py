"""The staging rings of a side that receives: lent to one rank each, until none of its bytes can come."""

from __future__ import annotations

import attrs

from pdcore.model import Generation, PeerIdentity

__all__ = ["Rings"]


@attrs.frozen
class _RingInDoubt:
    """A ring that a lost rank may write to; rooms up to a generation had been opened when it was lost."""

    ring: int
    identity: PeerIdentity
    upto: Generation


class Rings:
    """``total`` rings by number. One that a lost rank had waits until that is known to be silent: till then a
    late byte lands in it, and in no page."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total))
        self._in_doubt: list[_RingInDoubt] = []

    @property
    def in_doubt(self) -> int:
        """How many wait for a proof."""
        return len(self._in_doubt)

    def lend(self) -> int | None:
        """Return a ring that nobody writes to, if there is one."""
        return self._free.pop(0) if self._free else None

    def part(self, ring: int | None, identity: PeerIdentity, upto: Generation, *, paired: bool) -> None:
        """Keep the ring of a lost rank until it is silent; one not ``paired`` was asked for nothing."""
        if ring is not None and paired:
            self._in_doubt.append(_RingInDoubt(ring, identity, upto))
        elif ring is not None:
            self._free.append(ring)

    def silent(self, identity: PeerIdentity, upto: Generation | None) -> None:
        """No byte of a rank can come any more into what it had when it was lost; None: at any time."""
        silent = [d for d in self._in_doubt if d.identity == identity and (upto is None or d.upto <= upto)]
        self._in_doubt = [d for d in self._in_doubt if d not in silent]
        self._free += [d.ring for d in silent]

    def quiet(self, identity: PeerIdentity, ring: int) -> None:
        """A rank says itself that none of its bytes can come any more into a ring that it had."""
        quiet = [d for d in self._in_doubt if d.identity == identity and d.ring == ring]
        self._in_doubt = [d for d in self._in_doubt if d not in quiet]
        self._free += [d.ring for d in quiet]

    def all_silent(self) -> None:
        """No byte moves any more."""
        self._free += [d.ring for d in self._in_doubt]
        self._in_doubt = []

    def waits_for(self, identity: PeerIdentity) -> bool:
        """Whether a ring is out of use because of a rank."""
        return any(d.identity == identity for d in self._in_doubt)
