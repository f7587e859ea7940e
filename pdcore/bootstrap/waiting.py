"""Look-ups that wait for a rank or a room: each is woken by what it waits for, and the oldest by a crowd."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

__all__ = ["Crowded", "Waiting"]


class Crowded(Exception):  # noqa: N818 - no error: it asks again
    """More wait than may."""


class Waiting:
    """Who waits, the longest first, by topic. Belongs to the service's loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: dict[asyncio.Future[bool], None] = {}
        self._by_topic: dict[Hashable, dict[asyncio.Future[bool], None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    async def wait(self, topic: Hashable, seconds: float) -> bool:
        """Wait until something is told of the topic; False if nothing was in time.

        Raises:
            Crowded: others came, and this is the one that has waited for the longest time.
        """
        if len(self._all) >= self._most:
            oldest = next(iter(self._all))
            del self._all[oldest]
            _wake(oldest, crowded=True)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._all[future] = None
        self._by_topic.setdefault(topic, {})[future] = None
        try:
            crowded = await asyncio.wait_for(future, seconds)
        except asyncio.TimeoutError:
            return False
        finally:
            self._all.pop(future, None)
            others = self._by_topic[topic]
            del others[future]
            if not others:
                del self._by_topic[topic]
        if crowded:
            raise Crowded
        return True

    def tell(self, topic: Hashable) -> None:
        """Wake who waits for a topic."""
        for future in self._by_topic.get(topic, ()):
            _wake(future, crowded=False)


def _wake(future: asyncio.Future[bool], *, crowded: bool) -> None:
    if not future.done():
        future.set_result(crowded)
