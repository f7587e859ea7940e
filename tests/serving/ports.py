"""Free TCP ports below the range from which the kernel takes those of outgoing connections."""

from __future__ import annotations

import os
import random
import socket
import threading

RANGE = "PDCORE_TEST_PORTS"
"""FIRST-LAST: where this machine's other users leave room."""
DEFAULT = "20000-29999"

_given: set[int] = set()
_lock = threading.Lock()
"""Guards what was given out: a server takes its port seconds after it was named."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Name a port of 127.0.0.1 that nobody listens on and that was not named before."""
    first, last = (int(end) for end in os.environ.get(RANGE, DEFAULT).split("-"))
    candidates = list(range(first, last + 1))
    random.shuffle(candidates)
    with _lock:
        for port in candidates:
            if port not in _given and _is_free(port):
                _given.add(port)
                return port
    raise RuntimeError(f"no free port in {first}-{last}: name another range with {RANGE}=FIRST-LAST")
