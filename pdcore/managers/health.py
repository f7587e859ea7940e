"""Whether a manager can do its work, and what keeps it from that."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pdcore.model import Role

__all__ = ["Health", "examined"]

STUCK = 5.0
"""Seconds without a turn of the control thread, which takes ten a second, after which it counts as stuck."""


@attrs.frozen
class Health:
    """What keeps a manager from its work, one sentence each; none: it is well.

    That it has no peers, or that one of them is gone, is no problem of the manager's.
    """

    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __str__(self) -> str:
        return "; ".join(self.problems) or "ok"


def examined(role: Role, *, closed: bool, alive: bool, quiet: float, others: Sequence[str]) -> Health:
    """Return the health of a manager whose control thread is ``alive`` and turned ``quiet`` seconds ago.

    ``others`` are problems that its role knows of.
    """
    if closed:
        return Health((f"the {role.value} manager is closed",))
    problems = list(others)
    if not alive:
        problems.insert(0, "the control thread has ended: no peer is heard")
    elif quiet > STUCK:
        problems.insert(0, f"the control thread stands still for {quiet:.1f} s: no peer is heard meanwhile")
    return Health(tuple(problems))
