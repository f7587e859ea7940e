"""Which backend a suite runs against, and how one engine of it is started."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from pdcore.contract.engine import TransferEngine
from pdcore.model import Deadline, Role, new_incarnation
from pdcore.selection.select import select

__all__ = ["Target"]


@attrs.frozen
class Target:
    """A backend by its registered name, and its options.

    ``patience`` is how many seconds one call of an engine may take before it counts as hung.
    """

    name: str
    options: Mapping[str, object] = attrs.field(factory=dict)
    patience: float = 30.0

    def start_engine(self, role: Role) -> TransferEngine:
        """Start an engine of a new incarnation on 127.0.0.1."""
        return select(self.name, self.options).start_engine(
            role=role,
            incarnation=new_incarnation(),
            host="127.0.0.1",
            deadline=Deadline.after(self.patience),
        )
