"""What is measured: large transfers against the raw engine, tiny requests, planning alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from pdcore.bench.load import BenchError
from pdcore.bench.messages import Load
from pdcore.bench.near import BenchPair, paired, plan_of
from pdcore.bench.stuck_peer import HELD, StuckPeer, measure_stuck_peer
from pdcore.demo.content.models import MODELS
from pdcore.demo.messages import WorkerSettings
from pdcore.memory.pools import Pools
from pdcore.plan import merge_runs

__all__ = ["Effort", "Large", "Planning", "Tiny", "measure_large", "measure_planning", "measure_tiny"]

MODEL = "llama-3-8b"
"""64 buffers: a K and a V buffer in each of 32 layers."""

IN_FLIGHT = 64
PLANNED_PAGES = 4096


@attrs.frozen
class Effort:
    """How much is measured: tokens (128 KiB each) and page sizes of a large transfer, requests, rounds."""

    tokens: int = 4096
    page_sizes: tuple[int, ...] = (64, 16, 1)
    rounds: int = 15
    tiny: int = 5_000
    sequential: int = 1_000
    tiny_rounds: int = 5

    @classmethod
    def quick(cls) -> Effort:
        """Return an effort of seconds, for a first look."""
        return cls(tokens=1024, rounds=3, tiny=1_000, sequential=200, tiny_rounds=3)


@attrs.frozen
class Large:
    """One large transfer, raw and through pdcore in turns: medians in seconds.

    ``ratio`` is the median over the turns of raw time over pdcore time: 1 is as fast as raw.
    """

    name: str
    nbytes: int
    entries: int
    raw: float
    pdcore: float
    ratio: float


@attrs.frozen
class Tiny:
    """Requests of one one-token page over 64 buffers and an aux row; times in seconds.

    Latencies run on the decode side from creating the receiver to SUCCESS.
    """

    requests: int
    in_flight: int
    per_second: float
    p50: float
    p99: float
    cpu_prefill: float
    cpu_decode: float
    raw: float


@attrs.frozen
class Planning:
    """The plan of 4,096 scattered one-token pages over 64 buffers: medians in seconds."""

    entries: int
    numpy: float
    loop: float
    ratio: float
    validation: float


def measure_large(settings: WorkerSettings, page_size: int, effort: Effort) -> list[Large]:
    """Measure contiguous and scattered pages of one size."""
    pages = effort.tokens // page_size
    with paired(_shaped(settings, page_size, pages, 1)) as pair:
        return [
            _turns(pair, f"{kind}, page size {page_size}", Load(room, effort.rounds + 1, 1, pages, scattered))
            for room, kind, scattered in ((1, "contiguous", False), (10_001, "scattered", True))
        ]


def _turns(pair: BenchPair, name: str, load: Load) -> Large:
    """Move the same bytes raw and through pdcore, turn by turn; the first turn is not counted."""
    raw, batch = pair.raw(load), pair.batch(load)
    pair.far_serves(load)
    times: list[tuple[float, float]] = []
    for room in range(load.first_room, load.first_room + load.requests):
        one = Load(room, 1, 1, load.pages, load.scattered)
        times.append((_seconds(raw), pair.serve(one).latencies[0]))
    pair.far_served(load)
    raws, ours = zip(*times[1:], strict=True)
    return Large(
        name=name,
        nbytes=batch.nbytes,
        entries=len(batch),
        raw=statistics.median(raws),
        pdcore=statistics.median(ours),
        ratio=statistics.median(a / b for a, b in times[1:]),
    )


def measure_tiny(settings: WorkerSettings, effort: Effort) -> tuple[Tiny, Tiny, StuckPeer]:
    """Measure tiny requests: one after the other, 64 in flight, and 64 beside a peer that is stopped."""
    with paired(_shaped(settings, 1, 4 * IN_FLIGHT, IN_FLIGHT + HELD)) as pair:
        sequential, flying = (
            _middle(pair, Load(first_room, requests, in_flight, 1, True), effort.tiny_rounds)
            for first_room, requests, in_flight in (
                (1, effort.sequential, 1),
                (10_000_001, effort.tiny, IN_FLIGHT),
            )
        )
        load = Load(20_000_001, effort.tiny, IN_FLIGHT, 1, True)
        return sequential, flying, measure_stuck_peer(pair, load, effort.tiny_rounds)


def _middle(pair: BenchPair, load: Load, rounds: int) -> Tiny:
    """Serve a load several times and return the round of the median rate; a first one is not counted."""
    results = []
    for number in range(rounds + 1):
        again = msgspec.structs.replace(load, first_room=load.first_room + number * load.requests)
        results.append(_serve(pair, again))
    return sorted(results[1:], key=lambda r: r.per_second)[rounds // 2]


def _serve(pair: BenchPair, load: Load) -> Tiny:
    pair.far_serves(load)
    near = pair.serve(load)
    far = pair.far_served(load)
    raw = pair.raw(load)
    p50, p99 = np.percentile(far.latencies, [50, 99])
    return Tiny(
        requests=load.requests,
        in_flight=load.in_flight,
        per_second=load.requests / far.wall,
        p50=float(p50),
        p99=float(p99),
        cpu_prefill=near.cpu / load.requests,
        cpu_decode=far.cpu / load.requests,
        raw=statistics.median(_seconds(raw) for _ in range(100)),
    )


def measure_planning(rounds: int) -> Planning:
    """Measure pdcore's plan of whole pages against a Python loop that builds the same blocks.

    Raises:
        BenchError: the two don't give the same blocks.
    """
    pools = Pools.allocate(MODELS[MODEL].layout(1, PLANNED_PAGES))
    plan = plan_of(pools)
    here, there = (np.random.default_rng(seed).permutation(PLANNED_PAGES) for seed in (1, 2))
    lens = [b.item_len for b in pools.layout.buffers]
    batch, blocks = plan(here, there), plan_by_loop(lens, here, there)
    planned = np.stack((batch.local_offsets, batch.remote_offsets, batch.lengths), axis=1)
    if not np.array_equal(planned, np.array(blocks)):
        raise BenchError(
            "the plan and the loop give different blocks",
            f"{len(batch)} and {len(blocks)} blocks",
            "report it: pdcore.plan is wrong",
        )
    limits = np.array([r.length for r in pools.regions], np.uint64)
    turns = [
        (
            _seconds(lambda: plan(here, there)),
            _seconds(lambda: plan_by_loop(lens, here, there)),
            _seconds(lambda: batch.prove_inside(limits, limits)),
        )
        for _ in range(rounds)
    ]
    return Planning(
        entries=len(batch),
        numpy=statistics.median(t[0] for t in turns),
        loop=statistics.median(t[1] for t in turns),
        ratio=statistics.median(t[1] / t[0] for t in turns),
        validation=statistics.median(t[2] for t in turns),
    )


def plan_by_loop(
    item_lens: Sequence[int], here: npt.NDArray[np.int64], there: npt.NDArray[np.int64]
) -> list[tuple[int, int, int]]:
    """Build (local offset, remote offset, length) block by block, as transfer layers commonly do."""
    pairs = merge_runs(here, there)
    blocks = []
    for size in item_lens:
        for a, b, count in zip(pairs.local, pairs.remote, pairs.counts, strict=True):
            blocks.append((int(a) * size, int(b) * size, int(count) * size))
    return blocks


def _shaped(settings: WorkerSettings, page_size: int, num_pages: int, slots: int) -> WorkerSettings:
    return msgspec.structs.replace(
        settings, model=MODEL, page_size=page_size, num_pages=num_pages, slots=slots
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
