"""Several threads, several peers, one engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pdcore.regions import WriteBatch
from pdcore.testing.stage import KIB, MIB, Link, Stage

THREADS = 4
ROUNDS = 25
ALL_ROUNDS = 60.0  # seconds


def lane(number: int, turn: int) -> WriteBatch:
    """Return the batch of one thread and round: entries that no other thread writes."""
    offsets = number * 256 * KIB + np.arange(0, 256 * KIB, 4 * KIB) + 128 * turn
    return WriteBatch.of(0, 0, offsets[::-1], offsets, np.full(len(offsets), 128))


class Concurrency:
    """The group ``concurrency``."""

    def test_threads_write_to_one_peer(self, stage: Stage) -> None:
        link = stage.link()
        self._write_from_threads([link] * THREADS)
        link.require_arrived(*(lane(n, turn) for n in range(THREADS) for turn in range(ROUNDS)))

    def test_threads_write_to_several_peers(self, stage: Stage) -> None:
        near = stage.near()
        links = [Link(near, stage.far()) for _ in range(2)]
        self._write_from_threads(links * (THREADS // 2))
        for i, link in enumerate(links):
            mine = [lane(n, turn) for n in range(i, THREADS, 2) for turn in range(ROUNDS)]
            link.require_arrived(*mine)

    def test_connecting_and_disconnecting_beside_writes(self, stage: Stage) -> None:
        size = 4 * MIB
        link = stage.link([size], [size])
        pump = link.pump()
        for _ in range(ROUNDS):
            link.near.engine.disconnect(link.connect())
        assert pump.stop(stage.deadline())
        assert pump.error is None, str(pump.error)

    def _write_from_threads(self, links: list[Link]) -> None:
        def work(number: int, link: Link) -> None:
            for turn in range(ROUNDS):
                link.deliver(lane(number, turn))

        with ThreadPoolExecutor(len(links)) as pool:
            for done in [pool.submit(work, n, link) for n, link in enumerate(links)]:
                done.result(ALL_ROUNDS)
