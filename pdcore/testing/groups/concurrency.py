"""Several threads, several peers, one engine."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pdcore.contract.outcome import TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.testing.ends import KIB, MIB, Link
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.rules import Rule

THREADS = 4
ROUNDS = 25
ALL_ROUNDS = 60.0  # seconds
OFTEN = 1e-5  # seconds after which another thread has its turn: what is shared unguarded shows


def lane(number: int, turn: int) -> WriteBatch:
    """Return the batch of one thread and round: entries that no other thread writes."""
    offsets = number * 256 * KIB + np.arange(0, 256 * KIB, 4 * KIB) + 128 * turn
    return WriteBatch.of(0, 0, offsets[::-1], offsets, np.full(len(offsets), 128))


class Concurrency:
    """The group ``concurrency``."""

    @Rule(
        "write() may be called from several threads at once",
        "state of a write is kept in the engine or the peer instead of in the transfer",
    )
    def test_threads_write_to_one_peer(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        self._write_from_threads([link] * THREADS)
        link.require_arrived(*(lane(n, turn) for n in range(THREADS) for turn in range(ROUNDS)))

    @Rule(
        "writes to several peers at once reach each its own",
        "the peer written to last is remembered in the engine",
    )
    def test_threads_write_to_several_peers(self, engines: EnginesUnderTest) -> None:
        near = engines.near()
        links = [Link(near, engines.far()) for _ in range(2)]
        self._write_from_threads(links * (THREADS // 2))
        for i, link in enumerate(links):
            mine = [lane(n, turn) for n in range(i, THREADS, 2) for turn in range(ROUNDS)]
            link.require_arrived(*mine)

    @Rule(
        "connecting and disconnecting disturbs no write to the same peer",
        "what belongs to a connection is kept by endpoint, and goes with the first disconnect()",
    )
    def test_connecting_and_disconnecting_beside_writes(self, engines: EnginesUnderTest) -> None:
        size = 4 * MIB
        link = engines.link([size], [size])
        pump = link.pump()
        for _ in range(ROUNDS):
            link.near.engine.disconnect(link.connect())
        assert pump.stop(engines.deadline()), "a write had not ended"
        assert pump.error is None, f"a write beside it failed: {pump.error}"

    @Rule(
        "disconnecting a peer disturbs no other, nor another connection to the same one",
        "disconnect() closes what belongs to the engine, or to all connections of an endpoint",
    )
    def test_a_peer_is_disconnected_beside_others(self, engines: EnginesUnderTest) -> None:
        near = engines.near()
        first, second = (Link(near, engines.far()) for _ in range(2))
        again = second.connect()
        near.engine.disconnect(first.peer)
        second.deliver(lane(0, 0))
        near.engine.disconnect(again)
        second.deliver(lane(1, 0))
        second.require_arrived(lane(0, 0), lane(1, 0))
        first.require_arrived()

    def _write_from_threads(self, links: list[Link]) -> None:
        def work(number: int, link: Link) -> None:
            for turn in range(ROUNDS):
                transfer = link.near.engine.write(link.peer, lane(number, turn))
                state = transfer.wait(link.deadline())
                assert state is TransferState.DONE, f"a write was {state.name}: {transfer.error}"

        usual = sys.getswitchinterval()
        sys.setswitchinterval(OFTEN)
        try:
            with ThreadPoolExecutor(len(links)) as pool:
                for done in [pool.submit(work, n, link) for n, link in enumerate(links)]:
                    done.result(ALL_ROUNDS)
        finally:
            sys.setswitchinterval(usual)
