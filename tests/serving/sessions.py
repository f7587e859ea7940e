"""The processes of one session (setsid): who is in it, what it takes, and its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")
LOOK = 0.05
THREADS = 17
"""The place of their number among the fields behind the name."""


@attrs.frozen
class Usage:
    """What the processes of a session hold together."""

    processes: int = 0
    rss: int = 0
    """Bytes; pages that processes share count for each."""
    threads: int = 0
    sockets: int = 0
    files: int = 0
    cpu: float = 0.0
    """Seconds since their start."""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, group, session, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def members(session: int) -> Iterator[int]:
    """Yield the living processes of a session: a zombie is none, unless threads of it have yet to end.

    Those hold its sockets: on a busy machine for seconds after SIGKILL, and the port is taken meanwhile.
    """
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = _stat(int(entry))
            except OSError:
                continue  # it ended meanwhile
            if int(fields[3]) == session and (fields[0] not in "ZX" or int(fields[THREADS]) > 1):
                yield int(entry)


def kill(session: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to each process of a session."""
    for pid in members(session):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def gone(session: int, seconds: float) -> bool:
    """Wait until a session has no process left; tell whether it came to that."""
    until = time.monotonic() + seconds
    while any(True for _ in members(session)):
        if time.monotonic() > until:
            return False
        time.sleep(LOOK)  # nobody tells of a process that is not our child
    return True


def _of_process(pid: int) -> Usage:
    fields = _stat(pid)
    open_files = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            open_files.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
        except OSError:
            continue
    return Usage(
        processes=1,
        rss=int(fields[21]) * PAGE,
        threads=int(fields[THREADS]),
        sockets=sum(name.startswith("socket:") for name in open_files),
        files=len(open_files),
        cpu=(int(fields[11]) + int(fields[12])) / TICK,
    )


def usage(session: int) -> Usage:
    """Sum what the living processes of a session hold now."""
    parts = []
    for pid in members(session):
        try:
            parts.append(_of_process(pid))
        except OSError:
            continue
    names = [field.name for field in attrs.fields(Usage)]
    return Usage(**{name: sum(getattr(part, name) for part in parts) for name in names})
