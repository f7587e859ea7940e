"""Where the adapter logs, and how that comes out."""

from __future__ import annotations

import logging

__all__ = ["join_log", "log"]

log = logging.getLogger("pdcore.vllm")


def join_log() -> None:
    """Have pdcore's log lines come out as vLLM's do, unless somebody has seen to them: vLLM configures only
    its own logger."""
    ours, theirs = logging.getLogger("pdcore"), logging.getLogger("vllm")
    if not ours.handlers and theirs.handlers:
        ours.handlers, ours.propagate = list(theirs.handlers), False
        ours.setLevel(ours.level or theirs.getEffectiveLevel())
