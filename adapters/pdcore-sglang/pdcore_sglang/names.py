"""Names and versions that the adapter and its users share."""

from __future__ import annotations

__all__ = ["PREFIX", "SUPPORTED", "backend_of"]

PREFIX = "pdcore_"
"""A transfer backend of SGLang with this before its name is the pdcore backend of the rest."""

SUPPORTED = "==0.5.23.*"
"""The versions of SGLang whose calls this adapter was read from, and tested with."""


def backend_of(name: str) -> str | None:
    """Return the pdcore backend that a transfer backend of SGLang stands for; None: it is none of ours."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None
