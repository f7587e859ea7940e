"""How many file descriptors this process may open yet, asked before a library would abort for want of one."""

from __future__ import annotations

import os
import resource

from pdcore.errors import BootstrapError, EngineError

__all__ = ["free_descriptors", "require_descriptors"]

TO_DO = (
    "raise the limit: `ulimit -n 65536`, LimitNOFILE= of a systemd unit, `docker run --ulimit nofile=65536`; "
    "or look who holds them: ls -l /proc/PID/fd"
)


def free_descriptors() -> float:
    """Return how many there are; infinite without a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return float("inf")
    try:
        return soft - (len(os.listdir("/proc/self/fd")) - 1)
    except OSError:  # not even one for that
        return 0


def require_descriptors(
    count: int, purpose: str, error: type[BootstrapError | EngineError] = EngineError
) -> None:
    """Refuse to begin what would need more than there are.

    Args:
        count: how many it opens, for a moment or for good.
        purpose: as in "... cannot start".

    Raises:
        error: naming the limit, how many are free, and what to do.
    """
    free = free_descriptors()
    if free < count:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        there_is = f"{max(free, 0):g} are free of the {soft} that this process may open, {count} are needed"
        raise error(f"there are too few file descriptors {purpose}", there_is, TO_DO)
