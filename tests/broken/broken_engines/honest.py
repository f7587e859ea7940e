"""What the broken engines are made of: engines that are right, and of which each changes one thing."""

from __future__ import annotations

from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import Role


class Honest(LocalEngine):
    """The embedded engine."""

    copy_threads = 0

    def __init__(self, role: Role) -> None:
        super().__init__(LocalOptions(self.copy_threads))
        self.role = role


class WithThread(Honest):
    """The embedded engine with a thread that copies."""

    copy_threads = 1
