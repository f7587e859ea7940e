"""The child's end: its parent, and what every child does around the work that it is for."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from pdcore.children.messages import Answer, Fatal, QuestionFailed
from pdcore.children.printed import write_all
from pdcore.host.console import explained

__all__ = ["Parent", "brief", "run_child"]

BRIEF = 900
"""Characters of an error that keep an event below PIPE_BUF, so that any thread may tell it."""

CommandT = TypeVar("CommandT")
SettingsT = TypeVar("SettingsT")


def brief(error: BaseException) -> str:
    """Return the text of an error, cut so that it can be told from any thread."""
    return str(error)[:BRIEF]


class Parent(Generic[CommandT]):
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

    def tell(self, event: msgspec.Struct) -> None:
        """Tell an event; below PIPE_BUF bytes from any thread, since such a write is atomic."""
        with contextlib.suppress(BrokenPipeError):
            write_all(self._out, msgspec.json.encode(event) + b"\n")

    def answer(self, value: object) -> None:
        """Answer the question that came last."""
        self.tell(Answer(msgspec.Raw(msgspec.json.encode(value))))

    def refuse(self, error: Exception) -> None:
        """Say that the question that came last has failed."""
        self.tell(QuestionFailed(type(error).__name__, "".join(traceback.format_exception(error))))


def run_child(
    settings: type[SettingsT],
    decode: Callable[[bytes], CommandT],
    body: Callable[[SettingsT, Parent[CommandT]], None],
) -> int:
    """Be a child process: run ``body`` with the settings, and tell what ends it; return the exit status."""
    parent = Parent(decode)
    try:
        line = sys.stdin.buffer.readline()
        if line:  # else the parent is gone already
            body(msgspec.json.decode(line, type=settings), parent)
    except Exception as error:  # the parent has to tell it, whatever it is
        parent.tell(Fatal(str(explained(error))))
        return 1
    return 0
