"""Whole groups of prefill and decode ranks in one process, and what decode must hold in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce

import attrs
import numpy as np
import numpy.typing as npt
from pair import SCHEMA, SLOTS, config, soon

from pdcore import (
    BootstrapServer,
    Config,
    DecodeManager,
    KVBuffer,
    KVLayout,
    KVPoll,
    KVReceiver,
    KVSender,
    MetadataBuffers,
    PageOrder,
    Pools,
    PrefillManager,
    RoomId,
    StateComponent,
    Topology,
    select,
)
from pdcore.pairing.topology import DPChoice

PAGE_SIZE, PAGES, HEAD_DIM, LATENT = 4, 48, 8, 24

Group = list[Topology]


def ranks(*, tp: int = 1, pp: int = 1, cp: int = 1, dp_size: int = 1, dp_rank: int = 0) -> Group:
    """All ranks of one DP replica."""
    return list(Topology(tp_size=tp, pp_size=pp, cp_size=cp, dp_size=dp_size, dp_rank=dp_rank).replica())


@attrs.frozen
class Model:
    """A model's KV cache: its layers, its KV heads (0: one latent per token), and the order of its pages.

    The ``narrow`` layers have ``narrow_heads`` KV heads of twice the width. ``scaled``: beside each layer
    lie scales that every rank holds whole.
    """

    layers: int = 4
    kv_heads: int = 4
    order: PageOrder = PageOrder.TOKEN_HEAD
    narrow: tuple[int, ...] = ()
    narrow_heads: int = 0
    scaled: bool = False
    silent: bool = False

    def layout(self, rank: Topology) -> KVLayout:
        """Return what a rank holds of it; if ``silent``, without a word of which layers are narrow."""
        meant = self.meant(rank)
        buffers = (attrs.evolve(b, units=b.units if b.part == "scale" else None) for b in meant.buffers)
        return attrs.evolve(meant, buffers=tuple(buffers)) if self.silent else meant

    def meant(self, rank: Topology) -> KVLayout:
        """Return what a rank holds of it, everything said."""
        per_stage = max(1, self.layers // rank.pp_size)
        layers = range(rank.pp_rank * per_stage, (rank.pp_rank + 1) * per_stage)
        if not self.kv_heads:
            return KVLayout.latent(layers=layers, latent_dim=LATENT, page_size=PAGE_SIZE, num_pages=PAGES)
        wide = [layer for layer in layers if layer not in self.narrow]
        parts = [self._part(wide, self.kv_heads, HEAD_DIM, rank)]
        if self.narrow:
            parts.append(self._part(self.narrow, self.narrow_heads, 2 * HEAD_DIM, rank))
        layout = reduce(KVLayout.beside, parts)
        scales = tuple(KVBuffer(layer, "scale", PAGE_SIZE * 4, units=1) for layer in layers)
        return attrs.evolve(layout, buffers=(*layout.buffers, *(scales if self.scaled else ())))

    def _part(self, layers: Sequence[int], heads: int, head_dim: int, rank: Topology) -> KVLayout:
        return KVLayout.heads(
            layers=layers,
            kv_heads=max(1, heads // rank.tp_size),
            head_dim=head_dim,
            page_size=PAGE_SIZE,
            num_pages=PAGES,
            total_kv_heads=heads,
            order=self.order,
        )


def held(units: int, rank: Topology) -> list[int]:
    """Return which of so many units (heads, or the one latent or scale) a rank holds."""
    if rank.tp_size > units:
        return [rank.tp_rank * units // rank.tp_size]
    count = units // rank.tp_size
    return list(range(rank.tp_rank * count, (rank.tp_rank + 1) * count))


def logical(layer: int, part: str, token: int, head: int, width: int) -> npt.NDArray[np.uint8]:
    """The bytes of one head of one token of one layer, the same wherever they lie."""
    seed = np.array([layer, ord(part[0]), token, head], np.uint64)
    return np.random.default_rng(seed.tolist()).integers(1, 256, width, np.uint8)


def page_of(rank: Topology, layout: KVLayout, buffer: int, page: int) -> npt.NDArray[np.uint8]:
    """The bytes that page ``page`` of the request has on a rank."""
    described = layout.buffers[buffer]
    order, heads = layout.order_of(described), held(layout.units_of(described), rank)
    kinds = "kv" if order.fused else described.part[0]
    width = described.item_len // PAGE_SIZE // len(heads) // len(kinds)
    values = np.array(
        [
            [[logical(described.layer, kind, token, head, width) for head in heads] for kind in kinds]
            for token in range(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
        ]
    )
    axes = {"token": 0, "kv": 1, "head": 2}
    named = [dim for dim in axes if dim not in order.dims] + list(order.dims)
    turned: npt.NDArray[np.uint8] = values.transpose([*(axes[dim] for dim in named), 3]).reshape(-1)
    return turned


@attrs.define
class Groups:
    """Both groups, paired on first use. Manager ``i`` is that of rank ``i``."""

    model: Model
    bootstrap: str
    prefill: list[PrefillManager]
    decode: list[DecodeManager]

    def open(
        self, room: int, *, dp_rank: int = 0, choice: int | DPChoice = 0
    ) -> tuple[list[KVSender], list[KVReceiver]]:
        """Open a room on all ranks of a prefill replica and on all decode ranks, which choose it so."""
        chosen = [m for m in self.prefill if m.topology.dp_rank == dp_rank]
        senders = [manager.sender(RoomId(room)) for manager in chosen]
        receivers = [manager.receiver(self.bootstrap, RoomId(room)) for manager in self.decode]
        for receiver in receivers:
            receiver.init(choice)
        return senders, receivers

    def meet(self) -> None:
        """Move a request of one page, so that all are paired, and all that runs for that does."""
        senders, receivers = self.open(1)
        for sender in senders:
            sender.init(1)
            sender.send([0])
        for receiver in receivers:
            receiver.send_metadata([0])
        ended([*senders, *receivers])

    def write(self, manager: PrefillManager, pages: Sequence[int]) -> None:
        """Fill a prefill rank's pages with the request's content."""
        layout = self.model.meant(manager.topology)
        for buffer, array in enumerate(manager.pools.arrays):
            for number, page in enumerate(pages):
                array[page] = page_of(manager.topology, layout, buffer, number)

    def wipe(self) -> None:
        """Zero all pages of the decode ranks."""
        for manager in self.decode:
            for array in manager.pools.arrays:
                array.fill(0)

    def check(self, manager: DecodeManager, pages: Sequence[int], held: int = 0) -> None:
        """Check each byte of a decode rank: the pages after ``held`` arrived, nothing else was touched."""
        layout, topology = self.model.meant(manager.topology), manager.topology
        for buffer, array in enumerate(manager.pools.arrays):
            expected = np.zeros_like(array)
            for number, page in enumerate(pages):
                expected[page] = page_of(topology, layout, buffer, held + number)
            assert np.array_equal(array, expected), layout.buffers[buffer].name


def ended(handles: Sequence[KVSender | KVReceiver]) -> None:
    """Wait until all have succeeded, and clear them."""
    for handle in handles:
        assert handle.wait(soon()) is KVPoll.SUCCESS, handle.failure()
        assert handle.release_safe()
    for handle in handles:
        handle.clear()


@contextmanager
def groups(
    model: Model,
    prefill: Group,
    decode: Group,
    *,
    backend: str = "local",
    state: Callable[[Topology], Sequence[StateComponent]] = lambda _: (),
    cfg: Config | None = None,
) -> Iterator[Groups]:
    """Start all ranks of both groups."""
    cfg, chosen = cfg or config(), select(backend)
    with ExitStack() as stack:
        address = stack.enter_context(BootstrapServer()).address
        senders = [
            stack.enter_context(PrefillManager(chosen, pools(model, r, state(r)), r, address, cfg))
            for r in prefill
        ]
        both = Groups(model, address, senders, [])
        both.decode = stack.enter_context(extra_decode(both, decode, backend=backend, state=state, cfg=cfg))
        yield both


@contextmanager
def extra_decode(
    both: Groups,
    decode: Group,
    *,
    backend: str = "local",
    state: Callable[[Topology], Sequence[StateComponent]] = lambda _: (),
    cfg: Config | None = None,
) -> Iterator[list[DecodeManager]]:
    """Start the ranks of a decode group, for the model and the bootstrap service of ``both``."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                DecodeManager(select(backend), pools(both.model, r, state(r)), r, cfg or config())
            )
            for r in decode
        ]


def pools(model: Model, rank: Topology, state: Sequence[StateComponent]) -> Pools:
    """Return a rank's memory."""
    return Pools.allocate(model.layout(rank), aux=MetadataBuffers(SCHEMA, SLOTS), state=state)
