"""The memory of one worker: pools, who holds what of them, and what must be in them."""

from __future__ import annotations

import threading

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.demo.content.expected import AUX_SCHEMA, Comparison, Content, word
from pdcore.demo.content.models import MODELS
from pdcore.demo.content.slabs import kv_slabs, state_slabs
from pdcore.demo.messages import WorkerSettings
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.memory.pools import Pools, StatePool
from pdcore.model import Deadline, Role, RoomId

__all__ = ["HeldMemory", "PageAllocator", "WorkerMemory"]

Items = npt.NDArray[np.int64]


class PageAllocator:
    """Hands out the numbers ``0..count-1`` in a seeded random order, the last returned ones first.

    Reusing the last returned pages first is what a server does (they are warm), and it is the hardest
    case for the transfer: a late byte of the old request would hit the new one. Thread-safe.
    """

    def __init__(self, count: int, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(count)
        self._free: npt.NDArray[np.int64] = order.astype(np.int64)
        self._top = count
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """How many numbers can be taken now."""
        return self._top

    def take(self, count: int, deadline: Deadline) -> npt.NDArray[np.int64] | None:
        """Take ``count`` numbers, int64, waiting for others to be returned; None once the deadline passed."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._top >= count, deadline.remaining()):
                return None
            self._top -= count
            taken: npt.NDArray[np.int64] = self._free[self._top : self._top + count].copy()
            return taken

    def give_back(self, numbers: npt.NDArray[np.int64]) -> None:
        """Return numbers that ``take`` handed out."""
        with self._changed:
            self._free[self._top : self._top + len(numbers)] = numbers
            self._top += len(numbers)
            self._changed.notify_all()


@attrs.frozen(eq=False)
class HeldMemory:
    """What one request holds of a worker's memory: KV pages, an aux slot, and items of each component."""

    pages: Items
    slots: Items
    state: tuple[Items, ...]

    @property
    def slot(self) -> int:
        """The aux slot."""
        return int(self.slots[0])


class WorkerMemory:
    """The pools, aux rows and allocators of one worker. No two ranks use the same numbers for a request."""

    def __init__(self, settings: WorkerSettings, role: Role) -> None:
        model, rank, size = MODELS[settings.model], settings.topology, settings.page_size
        layout = model.layout(size, settings.num_pages, rank)
        components = model.components(size, settings.num_pages, settings.slots, rank)
        self._shape, self._page_size = model, size
        self.aux = MetadataBuffers(AUX_SCHEMA, settings.slots)
        self.pools = Pools.allocate(layout, state=components, aux=self.aux)
        self.content = Content(settings.seed, kv_slabs(model, size, rank))
        self._state_content = [Content(settings.seed, s) for s in state_slabs(model, size, rank)]
        order = word(settings.seed, role is Role.DECODE, rank.dp_rank, rank.unique_rank)
        self.pages = PageAllocator(settings.num_pages, order)
        self._slots = PageAllocator(settings.slots, order)
        self._state = [PageAllocator(component.num_items, order) for component in components]

    def take(self, tokens: int, deadline: Deadline) -> HeldMemory | None:
        """Take what a request of so many tokens needs, waiting for others; None once the deadline passed."""
        pages = -(-tokens // self._page_size)
        counts = [1, pages, *(state.items(pages, self._page_size) for state in self._shape.state)]
        taken: list[Items] = []
        for allocator, count in zip(self._allocators, counts, strict=True):
            items = allocator.take(count, deadline)
            if items is None:
                self._return(taken)
                return None
            taken.append(items)
        slots, numbers, *state = taken
        return HeldMemory(numbers, slots, tuple(state))

    def give_back(self, held: HeldMemory) -> None:
        """Return what ``take`` handed out."""
        self._return([held.slots, held.pages, *held.state])

    def fill_state(self, room: RoomId, held: HeldMemory) -> None:
        """Write the state of a request."""
        for pool, content, items in zip(self.pools.state, self._state_content, held.state, strict=True):
            content.fill(_arrays(pool), room, items, self._first(held, items))

    def verify(self, room: RoomId, held: HeldMemory) -> Comparison:
        """Compare every byte of a request with what the seed says, KV first."""
        verdict = self.content.verify(self.pools.arrays, room, held.pages)
        for pool, content, items in zip(self.pools.state, self._state_content, held.state, strict=True):
            verdict += content.verify(_arrays(pool), room, items, self._first(held, items))
        return verdict

    @property
    def _allocators(self) -> list[PageAllocator]:
        return [self._slots, self.pages, *self._state]

    def _return(self, taken: list[Items]) -> None:
        for allocator, items in zip(self._allocators, taken, strict=False):
            allocator.give_back(items)

    def _first(self, held: HeldMemory, items: Items) -> int:
        """Return which page of the request a component begins with: it keeps the last ones."""
        return len(held.pages) - len(items)


def _arrays(pool: StatePool) -> list[npt.NDArray[np.uint8]]:
    return [region.owner for region in pool.regions if isinstance(region.owner, np.ndarray)]
