"""A child process that does what the tests of the harness ask of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import msgspec

from pdcore.children import Parent, Question, run_child
from pdcore.errors import PDCoreError


class Settings(msgspec.Struct, frozen=True):
    fails: bool = False


class Sum(Question[int], frozen=True):
    numbers: list[int]


class Print(Question[None], frozen=True):
    text: str
    times: int = 1


class Spawn(Question[int], frozen=True):
    """Start a process that holds the same standard streams, and sleeps."""


class Exit(Question[None], frozen=True):
    status: int


class Silence(Question[None], frozen=True):
    """Never answer."""


Command: TypeAlias = Sum | Print | Spawn | Exit | Silence

decode_command = msgspec.json.Decoder[Command](Command).decode


def spawn() -> int:
    for fd in Path("/proc/self/fd").iterdir():
        if os.path.lexists(fd) and "pipe" in os.readlink(fd):
            os.set_inheritable(int(fd.name), True)  # the one that events go through, too
    return subprocess.Popen(["sleep", "600"], close_fds=False).pid


def serve(settings: Settings, parent: Parent[Command]) -> None:
    if settings.fails:
        raise PDCoreError("it cannot start", "the test says so", "let the test say something else")
    while (command := parent.next()) is not None:
        try:
            match command:
                case Sum():
                    parent.answer(100 // len(command.numbers) and sum(command.numbers))
                case Print():
                    for _ in range(command.times):
                        print(command.text, flush=True)
                    parent.answer(None)
                case Spawn():
                    parent.answer(spawn())
                case Exit():
                    os._exit(command.status)
                case Silence():
                    pass
        except ArithmeticError as error:
            parent.refuse(error)


if __name__ == "__main__":
    sys.exit(run_child(Settings, decode_command, serve))
