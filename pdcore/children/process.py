"""The process of a child, which nobody leaves behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator

__all__ = ["OwnedProcess", "without_interrupt"]


class OwnedProcess(subprocess.Popen[bytes]):
    """Ends with the last reference to it: a signal may come before whoever starts it holds it."""

    def __del__(self) -> None:
        if getattr(self, "_child_created", False) and self.returncode is None:
            self.kill()
            self.wait()
        for pipe in (getattr(self, name, None) for name in ("stdin", "stdout", "stderr")):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def without_interrupt() -> Iterator[None]:
    """Block SIGINT, for a child that inherits this: Ctrl-C is for its parent, which ends it in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
