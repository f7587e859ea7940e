"""Which fault comes when: a pure function of a seed, the place, and how often that place was passed."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from enum import Enum

import attrs

__all__ = ["MOST_FAULTS", "Decision", "Fault", "Schedule"]


class Fault(Enum):
    """What goes wrong with one control message or one write."""

    NONE = "none"
    DROP = "drop"
    DUPLICATE = "duplicate"
    DELAY = "delay"
    """This message and those after it on its route wait."""
    REORDER = "reorder"
    """This message waits, those after it overtake it."""
    CORRUPT = "corrupt"
    """The message cannot be decoded any more. What can still be decoded is another message."""
    PARTIAL = "partial"
    """The first half of the entries lands, then the write fails."""
    ERROR = "error"
    """Nothing lands, and the write fails."""
    HANG = "hang"
    """The write is pending for some time, and then done."""
    LATE = "late"
    """The write fails at once, and lands some time later: in flight until then."""
    RAISE = "raise"
    """The engine raises what no engine should."""


MESSAGE_FAULTS = (Fault.DROP, Fault.DUPLICATE, Fault.DELAY, Fault.REORDER, Fault.CORRUPT)
WRITE_FAULTS = (Fault.PARTIAL, Fault.ERROR, Fault.HANG, Fault.LATE, Fault.RAISE)
MOST_FAULTS = tuple(fault for fault in Fault if fault not in (Fault.NONE, Fault.RAISE))
"""All but that an engine raises: what it raised at is only safe to reuse when it is closed."""


@attrs.frozen
class Decision:
    """A fault, and for how many seconds, if it takes time."""

    fault: Fault
    seconds: float = 0.0


class Schedule:
    """Decides by ``seed``. At every place a share ``rate`` (0 to 1) of the events goes wrong.

    The n-th event of a place goes wrong in the same way in every run, whatever the threads do at the
    other places. The lock guards ``_passed`` and ``happened``.
    """

    def __init__(
        self,
        seed: int,
        rate: float = 0.15,
        faults: Sequence[Fault] = MOST_FAULTS,
        *,
        longest: float = 0.8,
    ) -> None:
        self.seed = seed
        self.happened: list[str] = []
        self._rate = rate
        self._longest = longest
        self._messages = tuple(fault for fault in MESSAGE_FAULTS if fault in faults)
        self._writes = tuple(fault for fault in WRITE_FAULTS if fault in faults)
        self._lock = threading.Lock()
        self._passed: Counter[str] = Counter()
        self._healed = False

    def message(self, place: str) -> Decision:
        """Decide about the next control message at a place."""
        return self._decide(place, self._messages)

    def write(self, place: str) -> Decision:
        """Decide about the next write at a place."""
        return self._decide(place, self._writes)

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        self._healed = True

    @property
    def healed(self) -> bool:
        """Whether nothing goes wrong any more; what is held back may go."""
        return self._healed

    def _decide(self, place: str, faults: Sequence[Fault]) -> Decision:
        with self._lock:
            self._passed[place] += 1
            nth = self._passed[place]
            drawn = hashlib.blake2b(f"{self.seed} {place} {nth}".encode(), digest_size=12).digest()
            chance, which, time = (int.from_bytes(drawn[at : at + 4], "big") for at in (0, 4, 8))
            if self._healed or not faults or chance >= self._rate * 2**32:
                return Decision(Fault.NONE)
            decision = Decision(faults[which % len(faults)], (time + 1) / 2**32 * self._longest)
            self.happened.append(f"{place} {nth}: {decision.fault.value}")
            return decision
