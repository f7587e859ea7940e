"""How a process ended, in words."""

from __future__ import annotations

import signal

__all__ = ["how_it_ended"]


def how_it_ended(status: int) -> str:
    """Say in words with what a process ended, as ``subprocess`` counts."""
    if status >= 0:
        return f"exited with {status}"
    number = -status
    name = signal.Signals(number).name if number in {s.value for s in signal.Signals} else f"signal {number}"
    return f"was ended by {name}"
