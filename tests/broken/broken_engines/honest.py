"""What the broken engines are made of: an engine that is right, and of which each changes one thing."""

from __future__ import annotations

from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import Role


class Honest(LocalEngine):
    """The embedded engine."""

    def __init__(self, role: Role) -> None:
        super().__init__(LocalOptions())
        self.role = role
