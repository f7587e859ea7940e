"""A child's end of the pipes to its parent: the other half of :mod:`pdcore.demo.child`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

__all__ = ["ParentLine"]

CommandT = TypeVar("CommandT")


class ParentLine(Generic[CommandT]):
    """Takes over this process's standard input and output: commands in, events out.

    Where the parent is gone, so is who wanted the events; the end of the commands tells.
    """

    def __init__(self, decode: Callable[[bytes], CommandT]) -> None:
        self._decode = decode
        self._out = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library's chatter must not mix with events

    def next(self) -> CommandT | None:
        """Return the parent's next command, or None when the parent is gone."""
        line = sys.stdin.buffer.readline()
        return self._decode(line) if line else None

    def emit(self, event: msgspec.Struct) -> None:
        """Write an event; from any thread, since a write of at most PIPE_BUF bytes is atomic."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._out, msgspec.json.encode(event) + b"\n")
