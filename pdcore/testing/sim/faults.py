"""How likely what goes wrong is, in one world."""

from __future__ import annotations

import random

import attrs

__all__ = ["Faults"]


@attrs.frozen
class Faults:
    """Chances from 0 to 1, per message, delivery, room or second."""

    drop: float = 0.0
    repeat: float = 0.0
    slow: float = 0.0
    fail: float = 0.0
    late: float = 0.0
    hang: float = 0.0
    abort: float = 0.0
    one_sided: float = 0.0
    hasty: float = 0.0
    cut: float = 0.0
    restart: float = 0.0
    unready: float = 0.0
    misfit: float = 0.0
    closing: float = 0.0
    """The share of restarts that are in order."""

    @property
    def loses_nothing(self) -> bool:
        """Whether every message between two that live arrives, in order."""
        return not (self.drop or self.slow or self.cut or self.restart)

    @property
    def none(self) -> bool:
        """Whether nothing at all goes wrong."""
        return self == Faults(unready=self.unready)  # what comes after faults may still meet them

    @classmethod
    def drawn(cls, chance: random.Random) -> Faults:
        """Return a mixture: in some worlds nothing goes wrong, in some no message is lost but by deaths."""
        kind = chance.choice(("none", "lossless", "lossless", "lossy", "lossy", "deadly"))
        rates = {"unready": chance.choice((0.0, 0.3)), "closing": chance.random()}
        if kind == "none":
            return cls(unready=rates["unready"])
        names = [*HARM, *LOSS] if kind == "lossy" else list(HARM)
        share = chance.choice((0.05, 0.2, 0.4))
        chosen = chance.sample(names, chance.randint(1, len(names)))
        rates |= {name: share * chance.random() for name in chosen}
        if kind == "deadly":
            rates["restart"] = 0.8
        for name in ("cut", "restart"):
            if name in rates:
                rates[name] = chance.choice((0.2, 0.8))
        return cls(**rates)


HARM = ("repeat", "fail", "late", "hang", "abort", "one_sided", "hasty", "misfit")
LOSS = ("drop", "slow", "cut", "restart")
