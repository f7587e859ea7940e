"""What a machine is told once."""

from __future__ import annotations

import attrs

__all__ = ["Settings"]


@attrs.frozen
class Settings:
    """Seconds that a pairing may take, and between two reminders; and whether digests go out."""

    pairing: float = 30.0
    interval: float = 2.0
    verify: bool = False
