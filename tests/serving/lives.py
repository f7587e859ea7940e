"""What a server holds from when it is warm until it is killed, and whether that grows."""

from __future__ import annotations

from typing import Any

import attrs

from .client import Prompt, ask, get, metric
from .servers import Server

WARM = 180.0
"""Seconds from when on a server's memory should be flat."""
GROWTH = 1.2
"""A server whose memory grew by more than a fifth after it was warm is not flat."""
MORE_HANDLES = 12
"""Threads or sockets: so many more are noise of the requests in flight."""


PROBE = Prompt((7, 7, 7), 2)


def blocks_in_use(server: Server) -> float:
    """The share of vLLM's blocks that is taken, 1.0 if it does not tell.

    An idle engine takes no step, and its gauge stays where the last one left it: it is asked something first.
    """
    if ask(server.url, PROBE, timeout=30.0).error is not None:
        return 1.0
    try:
        return round(metric(get(server.url, "/metrics"), "vllm:kv_cache_usage_perc"), 4)
    except OSError:
        return 1.0


@attrs.define
class Life:
    """What one server held between its start and its end, while warm: the first sample and the last."""

    name: str
    since: float | None = None
    """When it first answered."""
    first: dict[str, float] | None = None
    last: dict[str, float] | None = None
    warm_at: float = 0.0
    seen_at: float = 0.0

    def see(self, now: float, sample: dict[str, float]) -> None:
        """Take a sample, unless it is still starting or warming up."""
        if "blocks" not in sample:
            return
        self.since = now if self.since is None else self.since
        if now - self.since < WARM:
            return
        if self.first is None:
            self.first, self.warm_at = sample, now
        self.last, self.seen_at = sample, now

    def flat(self) -> bool:
        """Whether it holds about what it held when it was warm."""
        if self.first is None or self.last is None:
            return True
        return self.last["rss"] <= GROWTH * self.first["rss"] and all(
            self.last[key] <= self.first[key] + MORE_HANDLES for key in ("threads", "sockets")
        )

    def summary(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "name": self.name,
            "minutes": round((self.seen_at - self.warm_at) / 60, 1),
            "first": self.first,
            "last": self.last,
            "flat": self.flat(),
        }


def held(server: Server) -> dict[str, float]:
    """What a server holds now: of its processes, and of its engine where it answers."""
    now = server.usage()
    sample: dict[str, float] = {"rss": now.rss, "threads": now.threads, "sockets": now.sockets}
    try:
        page = get(server.url, "/metrics")
    except OSError:
        return sample
    return sample | {
        "blocks": round(metric(page, "vllm:kv_cache_usage_perc"), 4),
        "running": metric(page, "vllm:num_requests_running"),
        "waiting": metric(page, "vllm:num_requests_waiting"),
        "preemptions": metric(page, "vllm:num_preemptions_total"),
    }
