"""Stamps by which a receiver takes each message once and in order, and nothing of a life that is over.

TCP loses messages when a connection breaks, but neither repeats nor reorders them; a fault or a forger
does. What comes late or twice is worse than what is lost: an old request would have prefill write to
pages that decode has given away.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from pdcore.errors import WireError
from pdcore.model import Incarnation

__all__ = ["STAMP_BYTES", "Stamps"]

_STAMP = struct.Struct(">16sQ")
STAMP_BYTES = _STAMP.size
MOST_SENDERS = 65_536

Sender = TypeVar("Sender", bound=Hashable)


class Stamps(Generic[Sender]):
    """The stamps of one channel: the sender's life (16 bytes) and a number that grows with every message.

    Of at most ``MOST_SENDERS`` the last stamp is kept; who was heard longest ago is forgotten first.
    ``admit`` and ``forget`` belong to the channel's thread, and who calls ``next`` may send meanwhile.
    """

    def __init__(self, incarnation: Incarnation) -> None:
        self._life = hashlib.blake2b(incarnation.encode(), digest_size=16).digest()
        self._number = 0
        self._heard: OrderedDict[Sender, tuple[bytes, int]] = OrderedDict()

    def next(self) -> bytes:
        """Return the stamp of the next message, whoever it is for."""
        self._number += 1
        return _STAMP.pack(self._life, self._number)

    def admit(self, sender: Sender, stamp: memoryview) -> bool:
        """Note a stamp; False if this message or a later one of the same life was taken already.

        Raises:
            WireError: it is no stamp.
        """
        if len(stamp) != STAMP_BYTES:
            raise WireError(
                "a control message has no stamp",
                f"its first frame has {len(stamp)} bytes, a stamp has {STAMP_BYTES}",
                "run matching pdcore versions on both sides, and let nothing else send to this port",
            )
        life, number = _STAMP.unpack(stamp)
        last = self._heard.get(sender)
        if last is not None and last[0] == life and number <= last[1]:
            return False
        self._heard[sender] = life, number
        self._heard.move_to_end(sender)
        if len(self._heard) > MOST_SENDERS:
            self._heard.popitem(last=False)
        return True

    def forget(self, sender: Sender) -> None:
        """Forget a sender that was hung up on."""
        self._heard.pop(sender, None)
