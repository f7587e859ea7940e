"""The near side's handle on a far process. Every wait on it has a deadline."""

from __future__ import annotations

from typing import NoReturn

from pdcore.children import Child, Reply, decode_reply

__all__ = ["FarProcess"]


class FarProcess(Child[NoReturn, Reply]):
    """A process that runs :mod:`pdcore.testing.far.engine`. It is asked, and never told."""

    def __init__(self) -> None:
        super().__init__("the far process", "pdcore.testing.far.engine", None, decode_reply)
