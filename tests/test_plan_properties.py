"""Every byte that decode needs is written exactly once, and nothing else, for any legal configuration."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import EMPTY, GARBAGE, Bytes, Target

from pdcore.backend import StateRequest
from pdcore.layout import Attention, KVBuffer, KVLayout, StateBuffer, StateComponent
from pdcore.plan import IndexArray, KVCopier, plan_state
from pdcore.topology import CPSenders, Topology, map_ranks, served_ranks

thorough = settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))


@attrs.frozen
class Request:
    """A KV cache of one request, two groups, and everything that may vary."""

    attention: Attention
    heads: int
    head_bytes: int
    stages: tuple[tuple[int, ...], ...]
    prefill: Topology
    decode: Topology
    page_size: int
    num_pages: int
    decode_prefix_len: int
    seed: int

    @property
    def parts(self) -> tuple[str, ...]:
        return ("k", "v") if self.attention is Attention.HEADS else ("latent",)

    def layers(self, rank: Topology) -> tuple[int, ...]:
        """The absolute ids of the layers that a rank of either side holds."""
        if rank.pp_size == len(self.stages):
            return self.stages[rank.pp_rank]
        return tuple(layer for stage in self.stages for layer in stage)

    def layout(self, rank: Topology, pool: int, rng: np.random.Generator) -> KVLayout:
        """The layout of a rank, its buffers in any order."""
        held = len(oracle.held_heads(rank.tp_rank, rank.tp_size, self.heads))
        item = self.page_size * held * self.head_bytes
        buffers = [KVBuffer(layer, part, item) for layer in self.layers(rank) for part in self.parts]
        order = rng.permutation(len(buffers))
        total = self.heads if self.attention is Attention.HEADS else 0
        return KVLayout(
            self.page_size, pool, "uint8", self.attention, total, tuple(buffers[i] for i in order)
        )


def topologies(draw: st.DrawFn, sizes: list[int], stages: int) -> tuple[Topology, Topology]:
    cp = draw(st.sampled_from([1, 1, 1, 2, 3]))
    senders = draw(st.sampled_from(CPSenders))
    prefill = Topology(
        tp_size=draw(st.sampled_from(sizes)),
        pp_size=stages,
        cp_size=cp,
        cp_senders=senders,
        dp_size=2,
        dp_rank=1,
    )
    decode = Topology(tp_size=draw(st.sampled_from(sizes)), pp_size=draw(st.sampled_from([1, stages])))
    return prefill, decode


@st.composite
def requests(draw: st.DrawFn) -> Request:
    attention = draw(st.sampled_from(Attention))
    heads = draw(st.sampled_from([1, 2, 3, 4, 6, 8])) if attention is Attention.HEADS else 1
    sizes = [n for n in range(1, 9) if heads % n == 0 or n % heads == 0]
    count = draw(st.sampled_from([1, 1, 2, 3]))
    stages = tuple(tuple(10 * stage + n for n in range(draw(st.integers(1, 2)))) for stage in range(count))
    prefill, decode = topologies(draw, sizes, count)
    # Context-parallel ranks take turns at blocks of 256 tokens: only big pages make several of them.
    page_size = draw(st.sampled_from([1, 2, 3, 4] if prefill.cp_size == 1 else [1, 4, 128]))
    num_pages = draw(st.integers(0, 8))
    held = draw(st.sampled_from([0, draw(st.integers(0, num_pages)), num_pages]))
    beyond = draw(st.integers(0, page_size - 1))
    return Request(
        attention, heads, draw(st.integers(1, 3)), stages, prefill, decode, page_size, num_pages,
        held * page_size + (beyond if held < num_pages else 0), draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip


def some_pages(count: int, pool: int, rng: np.random.Generator) -> IndexArray:
    """Return distinct pages: scattered, in one run, or a run with a hole."""
    match rng.integers(3):
        case 0:
            return rng.permutation(pool)[:count].astype(np.int64)
        case 1:
            return np.arange(count) + rng.integers(pool - count + 1)
        case _:
            return np.delete(np.arange(pool), rng.integers(pool))[:count]


def chunks(count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return any split of ``count`` pages into chunks, empty ones among them: (first, after the last)."""
    cuts = np.sort(rng.integers(0, count + 1, rng.integers(0, 4)))
    edges = [0, *cuts.tolist(), count]
    return list(itertools.pairwise(edges))


def logical_cache(request: Request) -> dict[str, Bytes]:
    names = [f"layer.{layer}.{part}" for stage in request.stages for layer in stage for part in request.parts]
    shape = (len(names), request.num_pages, request.page_size, request.heads, request.head_bytes)
    numbers = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    return dict(zip(names, numbers, strict=True))


@attrs.frozen
class Side:
    """One rank with its memory: a decoy region comes first, so that region numbers matter."""

    rank: Topology
    layout: KVLayout
    pages: IndexArray
    regions: list[Bytes]

    @classmethod
    def of(
        cls, request: Request, cache: dict[str, Bytes], rank: Topology, first: int, fill: int,
        rng: np.random.Generator,
    ) -> Side:  # fmt: skip
        """Return a rank that holds the request's pages from ``first`` on somewhere in its pool."""
        positions = range(first, request.num_pages)
        pool = request.num_pages + int(rng.integers(1, 4))
        layout = request.layout(rank, pool, rng)
        pages = some_pages(len(positions), pool, rng)
        heads = oracle.held_heads(rank.tp_rank, rank.tp_size, request.heads)
        buffers = [
            oracle.paged(cache[b.name], heads, positions, pages.tolist(), pool, fill) for b in layout.buffers
        ]
        return cls(rank, layout, pages, [np.full(64, fill, np.int64), *buffers])

    @property
    def numbers(self) -> range:
        """The region numbers of the KV buffers."""
        return range(1, len(self.regions))


def send(request: Request, source: Side, target: Side, memory: Target, rng: np.random.Generator) -> None:
    """Have one prefill rank send the request in chunks of its own."""
    copier = KVCopier(source.rank, target.rank, source.layout, target.layout, source.numbers, target.numbers)
    for first, end in chunks(request.num_pages, rng):
        batch = copier(source.pages[first:end], first, target.pages, request.decode_prefix_len)
        oracle.copy_batch(batch, source.regions, memory)


@thorough
@given(requests())
def test_every_kv_byte_that_decode_lacks_is_written_once_and_nothing_else_is_touched(
    request: Request,
) -> None:
    rng = np.random.default_rng(request.seed)
    cache = logical_cache(request)
    prefills = [Side.of(request, cache, r, 0, GARBAGE, rng) for r in request.prefill.replica()]
    held = request.decode_prefix_len // request.page_size
    for rank in request.decode.replica():
        side = Side.of(request, cache, rank, held, EMPTY, rng)
        memory = Target(side.regions)
        for unique in map_ranks(request.prefill, rank, prefills[0].layout.units).prefill_ranks:
            send(request, prefills[unique], side, memory, rng)
        memory.check()


@settings(thorough, max_examples=200)
@given(requests(), st.booleans())
def test_both_sides_derive_the_same_mapping_and_nobody_is_forgotten(request: Request, sharded: bool) -> None:
    units = request.heads
    decodes = request.decode.replica()
    maps = {d.unique_rank: map_ranks(request.prefill, d, units, sharded_state=sharded) for d in decodes}
    for prefill in request.prefill.replica():
        me = prefill.unique_rank
        served = served_ranks(prefill, request.decode, units, sharded_state=sharded)
        senders = [d for d, mapping in maps.items() if me in mapping.prefill_ranks]
        tellers = [d for d, mapping in maps.items() if me in mapping.dummies]
        assert sorted(senders + tellers) == sorted(served)
        assert len(tellers) == (0 if senders else 1)
    for mapping in maps.values():
        assert mapping.required_responses == len(set(mapping.prefill_ranks)) > 0
        assert mapping.aux_rank in mapping.prefill_ranks


@attrs.frozen
class Hybrid:
    """State of one request: a whole item per buffer, of shape (outer, sliced, bytes), and two groups."""

    wholes: dict[str, Bytes]
    groups: dict[str, tuple[int, ...]]
    stages: tuple[tuple[str, ...], ...]
    prefill: Topology
    decode: Topology

    def component(self, rank: Topology, slots: int) -> StateComponent:
        """What a rank of either side holds of it."""
        names = self.stages[rank.pp_rank] if rank.pp_size == len(self.stages) else tuple(self.wholes)
        buffers = []
        for name in names:
            outer, dim, inner = self.wholes[name].shape
            groups = tuple(n // rank.tp_size for n in self.groups[name])
            shape = (outer, dim // rank.tp_size, inner)
            buffers.append(StateBuffer(name, outer * shape[1] * inner, shape, 1, groups))
        return StateComponent("mamba", slots, tuple(buffers))


@st.composite
def hybrids(draw: st.DrawFn) -> Hybrid:
    count = draw(st.sampled_from([1, 2]))
    prefill, decode = topologies(draw, [1, 2, 3, 4, 6], count)
    stages, wholes, groups, number = [], {}, {}, 0
    for stage in range(count):
        names = tuple(f"{kind}.{stage}" for kind in draw(st.sampled_from([("conv",), ("conv", "ssm"), ()])))
        for name in names:
            blocks = draw(st.lists(st.sampled_from([12, 24]), min_size=1, max_size=3))
            shape = draw(st.integers(1, 3)), sum(blocks), draw(st.integers(1, 2))
            size = int(np.prod(shape))
            wholes[name] = np.arange(number, number + size).reshape(shape)
            groups[name] = tuple(blocks) if len(blocks) > 1 else ()
            number += size
        stages.append(names)
    return Hybrid(wholes, groups, tuple(stages), prefill, decode)


def slots_of(hybrid: Hybrid, rank: Topology, slot: int, fill: int) -> tuple[StateComponent, list[Bytes]]:
    """Return a rank's component and its regions, with the request in one slot; a decoy region first."""
    component = hybrid.component(rank, slots=3)
    regions: list[Bytes] = [np.full(64, fill, np.int64)]
    for buffer in component.buffers:
        region = np.full((3, buffer.item_len), fill, np.int64)
        region[slot] = oracle.shard(hybrid.wholes[buffer.name], buffer, rank.tp_rank, rank.tp_size).reshape(
            -1
        )
        regions.append(region)
    return component, regions


@settings(thorough, max_examples=200)
@given(hybrids(), st.integers(0, 2), st.integers(0, 2), st.sampled_from([1, 12]))
def test_every_state_byte_is_written_once_and_nothing_else_is_touched(
    hybrid: Hybrid, here: int, there: int, kv_units: int
) -> None:
    for decode in hybrid.decode.replica():
        remote, regions = slots_of(hybrid, decode, there, EMPTY)
        memory = Target(regions)
        mapping = map_ranks(hybrid.prefill, decode, kv_units, sharded_state=remote.sharded)
        prefills = hybrid.prefill.replica()
        for prefill in (prefills[unique] for unique in mapping.prefill_ranks):
            local, source = slots_of(hybrid, prefill, here, GARBAGE)
            numbers = tuple(range(1, len(source))), tuple(range(1, len(regions)))
            plan = plan_state(StateRequest(local, remote, *numbers, prefill, decode, Attention.HEADS))
            assert plan.copier is not None, plan.refusal
            batch = plan.copier(np.array([here]), np.array([there]))
            oracle.copy_batch(batch, source, memory)
        memory.check()
