"""Every byte that decode needs is written exactly once, and nothing else, for any legal configuration."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
import oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import EMPTY, GARBAGE, Bytes, Target

from pdcore.contract.backend import StateRequest
from pdcore.layout.kv import Attention, KVBuffer, KVLayout, PageOrder, StateBuffer, StateComponent
from pdcore.pairing.topology import CPSenders, Topology, map_ranks, served_ranks
from pdcore.plan import IndexArray, KVCopier, plan_state

thorough = settings(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))


@attrs.frozen
class Buffer:
    """A KV buffer of all ranks together: what its bytes mean. ``said`` tells whether it says its units."""

    layer: int
    part: str
    units: int
    width: int
    order: PageOrder
    said: bool

    @property
    def name(self) -> str:
        return f"layer.{self.layer}.{self.part}"

    def held(self, rank: Topology) -> list[int]:
        """The units that a rank holds."""
        return oracle.held_heads(rank.tp_rank, rank.tp_size, self.units)


@attrs.frozen
class Request:
    """A KV cache of one request, two groups, and everything that may vary."""

    attention: Attention
    heads: int
    stages: tuple[tuple[Buffer, ...], ...]
    prefill: Topology
    decode: Topology
    page_size: int
    num_pages: int
    decode_prefix_len: int
    seed: int

    def buffers(self, rank: Topology) -> tuple[Buffer, ...]:
        """The buffers that a rank of either side holds."""
        if rank.pp_size == len(self.stages):
            return self.stages[rank.pp_rank]
        return tuple(buffer for stage in self.stages for buffer in stage)

    def layout(self, rank: Topology, pool: int, rng: np.random.Generator) -> KVLayout:
        """The layout of a rank, its buffers in any order, some of them of the layout's own page order."""
        held = [
            KVBuffer(
                buffer.layer,
                buffer.part,
                self.page_size * (1 + buffer.order.fused) * len(buffer.held(rank)) * buffer.width,
                order=buffer.order,
                units=buffer.units if buffer.said else None,
            )
            for buffer in self.buffers(rank)
        ]
        default = held[rng.integers(len(held))].order
        assert default is not None
        order = rng.permutation(len(held))
        apart = rng.choice([0, 0, 1, 5], len(held))
        held = [
            attrs.evolve(b, item_stride=int(gap and b.item_len + gap))
            for b, gap in zip(held, apart, strict=True)
        ]
        buffers = (
            held[i] if held[i].order is not default else attrs.evolve(held[i], order=None) for i in order
        )
        total = self.heads if self.attention is Attention.HEADS else 0
        return KVLayout(self.page_size, pool, "uint8", self.attention, total, tuple(buffers), order=default)


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


def layer(draw: st.DrawFn, number: int, units: int, said: bool) -> list[Buffer]:
    """Return the buffers of a layer: K and V apart or fused, in any order, perhaps beside scales."""
    order = draw(st.sampled_from(PageOrder))
    parts = ("kv",) if order.fused else ("k", "v")
    out = [Buffer(number, part, units, draw(st.integers(1, 3)), order, said) for part in parts]
    if draw(st.booleans()):
        scales = draw(st.sampled_from(PageOrder))
        out.append(Buffer(number, "scale", draw(st.sampled_from([1, units])), 1, scales, True))
    return out


@st.composite
def requests(draw: st.DrawFn) -> Request:
    attention = draw(st.sampled_from(Attention))
    heads = draw(st.sampled_from([1, 2, 3, 4, 6, 8])) if attention is Attention.HEADS else 1
    # Some layers may have fewer heads, and only if the stage has one of all heads they need not say so.
    fewer = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    sizes = [n for n in range(1, 9) if all(units % n == 0 or n % units == 0 for units in (heads, fewer))]
    count = draw(st.sampled_from([1, 1, 2, 3]))
    said = count > 1 or draw(st.booleans())
    stages = []
    for stage in range(count):
        buffers: list[Buffer] = []
        for n in range(draw(st.integers(1, 2))):
            number = 10 * stage + n
            if attention is Attention.LATENT:
                latent = Buffer(number, "latent", 1, draw(st.integers(1, 3)), PageOrder.TOKEN_HEAD, False)
                buffers.append(latent)
            else:
                units = draw(st.sampled_from([heads, fewer])) if said or n else heads
                buffers += layer(draw, number, units, said)
        stages.append(tuple(buffers))
    prefill, decode = topologies(draw, sizes, count)
    # Context-parallel ranks take turns at blocks of 256 tokens: only big pages make several of them.
    page_size = draw(st.sampled_from([1, 2, 3, 4] if prefill.cp_size == 1 else [1, 4, 128]))
    num_pages = draw(st.integers(0, 8))
    held = draw(st.sampled_from([0, draw(st.integers(0, num_pages)), num_pages]))
    beyond = draw(st.integers(0, page_size - 1))
    return Request(
        attention, heads, tuple(stages), prefill, decode, page_size, num_pages,
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
    out, start = {}, 0
    for buffer in (buffer for stage in request.stages for buffer in stage):
        kinds = 1 + buffer.order.fused
        shape = (request.num_pages, request.page_size, kinds, buffer.units, buffer.width)
        size = int(np.prod(shape))
        out[buffer.name] = np.arange(start, start + size, dtype=np.int64).reshape(shape)
        start += size
    return out


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
        meant = {buffer.name: buffer for buffer in request.buffers(rank)}
        buffers = [
            oracle.paged(
                cache[b.name], meant[b.name].held(rank), positions, pages.tolist(), pool, fill,
                meant[b.name].order,
            )
            for b in layout.buffers
        ]  # fmt: skip
        buffers = [
            oracle.spread(held, b.stride, fill) for held, b in zip(buffers, layout.buffers, strict=True)
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


@settings(thorough, max_examples=350)
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
        for unique in map_ranks(request.prefill, rank, *side.layout.units).prefill_ranks:
            send(request, prefills[unique], side, memory, rng)
        memory.check()


@settings(thorough, max_examples=200)
@given(requests(), st.booleans())
def test_both_sides_derive_the_same_mapping_and_nobody_is_forgotten(request: Request, sharded: bool) -> None:
    units = {buffer.units if buffer.said else request.heads for stage in request.stages for buffer in stage}
    decodes = request.decode.replica()
    maps = {d.unique_rank: map_ranks(request.prefill, d, *units, sharded_state=sharded) for d in decodes}
    for prefill in request.prefill.replica():
        me = prefill.unique_rank
        served = served_ranks(prefill, request.decode, *units, sharded_state=sharded)
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
    blocks: dict[str, tuple[int, ...]]
    units: dict[str, int | None]
    stages: tuple[tuple[str, ...], ...]
    prefill: Topology
    decode: Topology
    gaps: tuple[int, int]

    def component(self, rank: Topology, slots: int) -> StateComponent:
        """What a rank of either side holds of it."""
        names = self.stages[rank.pp_rank] if rank.pp_size == len(self.stages) else tuple(self.wholes)
        buffers = []
        for name in names:
            part = self.part(name, rank)
            units, blocks = self.units[name], self.blocks[name]
            groups = tuple(n * part.shape[1] // sum(blocks) for n in blocks) if len(blocks) > 1 else ()
            gap = self.gaps[rank.dp_size == 1]
            stride = part.size + gap if gap else 0
            dim = None if units == 1 and not groups else 1
            buffers.append(
                StateBuffer(name, part.size, part.shape, dim, groups, item_stride=stride, units=units)
            )
        return StateComponent("mamba", slots, tuple(buffers))

    def part(self, name: str, rank: Topology) -> Bytes:
        """What a rank holds of a buffer's item."""
        units = self.units[name] or rank.tp_size
        return oracle.shard(self.wholes[name], self.blocks[name], rank.tp_rank, rank.tp_size, units)


@st.composite
def hybrids(draw: st.DrawFn) -> Hybrid:
    count = draw(st.sampled_from([1, 2]))
    prefill, decode = topologies(draw, [1, 2, 3, 4, 6], count)
    stages, wholes, every, number = [], {}, {}, 0
    units: dict[str, int | None] = {}
    sizes = prefill.tp_size, decode.tp_size
    legal = [n for n in (1, 2, 3, 4, 6, 12) if all(n % size == 0 or size % n == 0 for size in sizes)]
    for stage in range(count):
        names = tuple(f"{kind}.{stage}" for kind in draw(st.sampled_from([("conv",), ("conv", "ssm"), ()])))
        for name in names:
            blocks = draw(st.lists(st.sampled_from([12, 24]), min_size=1, max_size=3))
            shape = draw(st.integers(1, 3)), sum(blocks), draw(st.integers(1, 2))
            size = int(np.prod(shape))
            wholes[name] = np.arange(number, number + size).reshape(shape)
            every[name] = tuple(blocks)
            units[name] = draw(st.sampled_from([None, *legal]))
            number += size
        stages.append(names)
    gaps = draw(st.sampled_from([(0, 0), (0, 0), (3, 0), (0, 2), (4, 1)]))
    return Hybrid(wholes, every, units, tuple(stages), prefill, decode, gaps)


def slots_of(hybrid: Hybrid, rank: Topology, slot: int, fill: int) -> tuple[StateComponent, list[Bytes]]:
    """Return a rank's component and its regions, with the request in one slot; a decoy region first."""
    component = hybrid.component(rank, slots=3)
    regions: list[Bytes] = [np.full(64, fill, np.int64)]
    for buffer in component.buffers:
        region = np.full((3, buffer.item_len), fill, np.int64)
        region[slot] = hybrid.part(buffer.name, rank).reshape(-1)
        regions.append(oracle.spread(region, buffer.stride, fill))
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
