"""Faults that a test asks for; ``reset`` takes all of them back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

open_gate = threading.Event()
"""Clear while completions are held back; the bytes still move."""
open_gate.set()
no_device = False
delay = 0.0
"""Seconds between the end of a transfer and its completion."""
max_message_bytes = 1 << 30
"""The longest work request that the NIC takes."""
cut_lanes: set[tuple[str, int]] = set()
"""(peer's engine key, queue pair) whose peer no longer answers."""
outcomes: deque[str | None] = deque()
"""Messages with which the next work requests fail, in the order they are sent; None: that one succeeds."""


@contextmanager
def held() -> Iterator[None]:
    """Hold all completions back within the block."""
    open_gate.clear()
    try:
        yield
    finally:
        open_gate.set()


def fail_entry(number: int, message: str = "remote operation error") -> None:
    """Fail the work request that is sent as ``number`` from now, counted from 0."""
    outcomes.extend([None] * number + [message])


def reset() -> None:
    global no_device, delay, max_message_bytes
    open_gate.set()
    no_device, delay, max_message_bytes = False, 0.0, 1 << 30
    cut_lanes.clear()
    outcomes.clear()
