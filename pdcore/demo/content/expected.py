"""What pages, slots and aux rows must hold: a pure function of a seed, so that both sides can tell.

What a byte must be depends on the room, layer, tensor, token and head (or state element) that it stands
for, and not on which rank holds it where. A 64-bit word of an item (a page or slot of all TP ranks
together) is ``block(buffer)[i] + key(room, buffer, item)`` modulo 2**64, with everything drawn from the
seed; a rank has its cut of the block. Two consequences carry the demo's claim. First, two items of one
buffer with different keys differ in *every* word: whatever a target page held before (another room, or
zeros) is wrong everywhere, so no page can pass without having been written. Second, a digest that is
linear in the words can be computed from the seed alone, without the bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.demo.content.slabs import Slab
from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.model import RoomId

__all__ = ["AUX_SCHEMA", "Comparison", "Content", "Difference", "aux_values", "word"]

Words = npt.NDArray[np.uint64]

AUX_SCHEMA = AuxSchema(
    (
        AuxField("first_token", "int64"),
        AuxField("logprobs", "float32", (8,)),
        AuxField("cached_tokens", "int32"),
    )
)
"""What prefill hands to decode beside the pages: the first token, its best logprobs, prefix-cache hits."""

GOLDEN = 0x9E3779B97F4A7C15
SCRATCH_BYTES = 256 * 1024  # stays in the second-level cache


@attrs.frozen
class Difference:
    """The first byte that is not as the seed says: what it stands for, and where it lies.

    ``item`` counts within the pool; ``offset`` is in bytes within the item of this rank.
    """

    what: str
    place: str
    buffer: str
    item: int
    offset: int
    expected: int
    found: int

    def __str__(self) -> str:
        return (
            f"{self.what}, {self.place}: 0x{self.found:02x} instead of 0x{self.expected:02x} "
            f"(byte {self.offset} of item {self.item} of {self.buffer})"
        )


@attrs.frozen
class Comparison:
    """What was found in the items of one request; ``wrong`` counts per buffer and item.

    The digests are modulo 2**64, and add up over ranks and components.
    """

    nbytes: int = 0
    digest: int = 0
    expected_digest: int = 0
    wrong: int = 0
    first: Difference | None = None

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.nbytes + other.nbytes,
            (self.digest + other.digest) % 2**64,
            (self.expected_digest + other.expected_digest) % 2**64,
            self.wrong + other.wrong,
            self.first or other.first,
        )

    @property
    def good(self) -> bool:
        """Whether every byte is as the seed says."""
        return self.first is None and self.digest == self.expected_digest


def mix(words: Words) -> Words:
    """Return the finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection on 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed


def word(*parts: int) -> int:
    """Return 64 random-looking bits that depend on every part and on their order."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix((state ^ np.uint64(part % 2**64)) + np.uint64(GOLDEN))
    return int(state[0])


def aux_values(seed: int, room: RoomId, tokens: int) -> dict[str, npt.NDArray[np.generic]]:
    """Return the values of :data:`AUX_SCHEMA` that prefill computes for a request."""
    random = np.random.default_rng([seed % 2**64, room])
    return {
        "first_token": np.array(random.integers(0, 151_936), np.int64),
        "logprobs": -random.exponential(size=8).astype(np.float32),
        "cached_tokens": np.array(random.integers(0, tokens + 1), np.int32),
    }


class Content:
    """The expected bytes of all items of some buffers of one rank: its KV pages, or one state component.

    Thread-safe: nothing changes after construction.
    """

    def __init__(self, seed: int, slabs: Sequence[Slab]) -> None:
        self._seed = seed
        self._slabs = tuple(slabs)
        names = [zlib.crc32(slab.name.encode()) for slab in slabs]
        self._names = np.array([word(seed, name) for name in names], np.uint64)
        self._blocks = [
            _drawn(slab.cut.whole, seed, name)[slab.cut.words]
            for slab, name in zip(slabs, names, strict=True)
        ]
        # An odd factor is invertible modulo 2**64, so a single wrong word always changes the digest.
        weights = _drawn(max((s.cut.whole for s in slabs), default=0), seed) | np.uint64(1)
        cuts = {slab.cut: weights[slab.cut.words] for slab in slabs}
        self._weights = [cuts[slab.cut] for slab in slabs]
        most = max((len(block) for block in self._blocks), default=0)
        self._scratch_words = max(most, SCRATCH_BYTES // 8)

    def fill(
        self,
        arrays: Sequence[npt.NDArray[np.uint8]],
        room: RoomId,
        items: npt.NDArray[np.int64],
        first: int = 0,
    ) -> None:
        """Write a room's pages (or slots) ``first, first + 1, ...`` into items ``items`` of every buffer.

        ``arrays`` are the pools, one per buffer, uint8, shape ``(num_items, item_len)``.
        """
        scratch = np.empty(self._scratch_words, np.uint64)
        for array, block, keys in zip(arrays, self._blocks, self._keys(room, first, len(items)), strict=True):
            pool = array.view(np.uint64)
            for chosen, key in self._steps(items, keys, len(block)):
                rows = scratch[: len(chosen) * len(block)].reshape(len(chosen), len(block))
                np.add(block, key[:, None], out=rows)
                pool[chosen] = rows

    def verify(
        self,
        arrays: Sequence[npt.NDArray[np.uint8]],
        room: RoomId,
        items: npt.NDArray[np.int64],
        first: int = 0,
    ) -> Comparison:
        """Compare every byte of a room's items, in order, with what the seed says, and digest them."""
        scratch = np.empty(self._scratch_words, np.uint64), np.empty(self._scratch_words, np.bool_)
        nbytes, digest, expected, wrong = 0, 0, 0, 0
        different: Difference | None = None
        for index, keys in enumerate(self._keys(room, first, len(items))):
            array, block, weights = arrays[index], self._blocks[index], self._weights[index]
            factors = mix(keys) | np.uint64(1)
            digests, good = self._look(array.view(np.uint64), index, items, keys, *scratch)
            digest += int((digests * factors).sum())
            expected += int((((block * weights).sum() + keys * weights.sum()) * factors).sum())
            nbytes += len(items) * array.shape[1]
            wrong += len(good) - int(good.sum())
            if different is None and not good.all():
                number = int(np.argmin(good))
                different = self._difference(array, index, items, number, first, keys[number])
        return Comparison(nbytes, digest % 2**64, expected % 2**64, wrong, different)

    def _keys(self, room: RoomId, first: int, count: int) -> Words:
        """Return a key per buffer and item, shape (buffers, count)."""
        bases = mix(self._names ^ np.uint64(word(self._seed, room)))
        return mix(bases[:, None] + np.arange(first, first + count, dtype=np.uint64) * np.uint64(GOLDEN))

    def _steps(
        self, items: npt.NDArray[np.int64], keys: Words, words: int
    ) -> list[tuple[npt.NDArray[np.int64], Words]]:
        step = max(1, SCRATCH_BYTES // (8 * words))
        return [(items[at : at + step], keys[at : at + step]) for at in range(0, len(items), step)]

    def _look(
        self,
        pool: Words,
        index: int,
        items: npt.NDArray[np.int64],
        keys: Words,
        words: Words,
        flags: npt.NDArray[np.bool_],
    ) -> tuple[Words, npt.NDArray[np.bool_]]:
        """Return the digest of every item, and whether every word of it is right."""
        block, weights = self._blocks[index], self._weights[index]
        digests, good = np.empty(len(items), np.uint64), np.empty(len(items), np.bool_)
        at = 0
        for chosen, key in self._steps(items, keys, len(block)):
            here = slice(at, at + len(chosen))
            at = here.stop
            shape = (len(chosen), len(block))
            rows = words[: shape[0] * shape[1]].reshape(shape)
            equal = flags[: shape[0] * shape[1]].reshape(shape)
            np.take(pool, chosen, axis=0, out=rows, mode="clip")  # "raise" would buffer the output
            np.matmul(rows, weights, out=digests[here])
            np.subtract(rows, key[:, None], out=rows)
            np.equal(rows, block, out=equal)
            np.all(equal, axis=1, out=good[here])
        return digests, good

    def _difference(
        self,
        array: npt.NDArray[np.uint8],
        index: int,
        items: npt.NDArray[np.int64],
        number: int,
        first: int,
        key: np.uint64,
    ) -> Difference:
        found = array[items[number]]
        expected = (self._blocks[index] + key).view(np.uint8)
        offset = int(np.argmax(found != expected))
        slab = self._slabs[index]
        return Difference(
            what=slab.title,
            place=slab.cut.place(first + number, offset),
            buffer=slab.name,
            item=int(items[number]),
            offset=offset,
            expected=int(expected[offset]),
            found=int(found[offset]),
        )


def _drawn(count: int, *seeds: int) -> Words:
    return np.random.default_rng([s % 2**64 for s in seeds]).integers(0, 2**64, count, dtype=np.uint64)
