"""What a command shows of its progress: on standard error, and only where somebody looks at it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status

from pdcore.model import Deadline

__all__ = ["counting", "telling"]

SHOW_AFTER = 2.0
"""Seconds before a bar appears: what is done by then needs none."""


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar; what is yielded is told how many of ``total`` have ended."""
    if not _seen():
        yield lambda ended: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, quiet_until = bar.add_task("", total=total), Deadline.after(SHOW_AFTER)

    def tell(ended: int) -> None:
        if quiet_until.expired:
            bar.start()
            bar.update(task, completed=ended)

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()


@contextlib.contextmanager
def telling(what: str) -> Iterator[Callable[[str], None]]:
    """Show a line that begins as ``what``; what is yielded is told what it says next."""
    if not _seen():
        yield lambda text: None
        return
    with Status(what, console=Console(stderr=True)) as status:
        yield status.update


def _seen() -> bool:
    """Whether standard error is a terminal that can move its cursor, whatever asks for colours."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
