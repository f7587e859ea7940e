"""What the KV pages and aux rows must hold: a pure function of a seed, so that both sides can tell.

A 64-bit word of a page is ``block(buffer)[i] + key(room, buffer, page)`` modulo 2**64, with everything
drawn from the seed. Two consequences carry the demo's claim. First, two pages of one buffer with
different keys differ in *every* word: whatever a target page held before (another room, or zeros) is
wrong everywhere, so no page can pass without having been written. Second, a digest that is linear in
the words can be computed from the seed alone, without the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.layout import AuxField, AuxSchema, KVLayout
from pdcore.model import RoomId

__all__ = ["AUX_SCHEMA", "Content", "Difference", "Verdict", "aux_values"]

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
    """The first byte that is not as the seed says, and where it is.

    ``page`` counts within the request, ``pool_page`` within the pool; ``offset`` is in bytes.
    """

    buffer: str
    layer: int
    page: int
    pool_page: int
    offset: int
    expected: int
    found: int

    def __str__(self) -> str:
        return (
            f"buffer {self.buffer} (layer {self.layer}), page {self.page} (pool page {self.pool_page}), "
            f"byte {self.offset}: 0x{self.found:02x} instead of 0x{self.expected:02x}"
        )


@attrs.frozen
class Verdict:
    """What was found in the pages of one request; ``wrong_pages`` counts per buffer and page."""

    pages: int
    nbytes: int
    digest: int
    expected_digest: int
    wrong_pages: int
    first: Difference | None

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
    """The expected bytes of all pages of a layout whose items are multiples of 8 bytes.

    One thread at a time: the scratch space is shared by all calls.
    """

    def __init__(self, seed: int, layout: KVLayout) -> None:
        self._seed = seed
        self._layout = layout
        random = np.random.default_rng(seed % 2**64)
        lens = [b.item_len // 8 for b in layout.buffers]
        self._blocks = [random.integers(0, 2**64, n, dtype=np.uint64) for n in lens]
        # An odd factor is invertible modulo 2**64, so a single wrong word always changes the digest.
        self._weights = random.integers(0, 2**64, max(lens), dtype=np.uint64) | np.uint64(1)
        rows = max(1, SCRATCH_BYTES // (8 * max(lens)))
        self._scratch = np.empty(rows * max(lens), np.uint64)
        self._equal = np.empty(rows * max(lens), np.bool_)

    def fill(
        self,
        arrays: Sequence[npt.NDArray[np.uint8]],
        room: RoomId,
        pages: npt.NDArray[np.int64],
        first: int = 0,
    ) -> None:
        """Write pages ``first, first + 1, ...`` of a room into pool pages ``pages`` of every buffer.

        ``arrays`` are the pools, one per buffer, uint8, shape ``(num_pages, item_len)``.
        """
        for index, array in enumerate(arrays):
            block, pool = self._blocks[index], array.view(np.uint64)
            keys = self._keys(room, index, first, len(pages))
            for chosen, key in self._steps(pages, keys, len(block)):
                rows = self._scratch[: len(chosen) * len(block)].reshape(len(chosen), len(block))
                np.add(block, key[:, None], out=rows)
                pool[chosen] = rows

    def verify(
        self, arrays: Sequence[npt.NDArray[np.uint8]], room: RoomId, pages: npt.NDArray[np.int64]
    ) -> Verdict:
        """Compare every byte of a room's pages, in order, with what the seed says, and digest them."""
        digest, expected, wrong = 0, 0, 0
        first: Difference | None = None
        for index, array in enumerate(arrays):
            keys = self._keys(room, index, 0, len(pages))
            factors = mix(keys) | np.uint64(1)
            digests, good = self._look(array.view(np.uint64), self._blocks[index], pages, keys)
            digest += int((digests * factors).sum())
            expected += int((self._expected(index, keys) * factors).sum())
            wrong += len(good) - int(good.sum())
            if first is None and not good.all():
                first = self._difference(array, index, pages, keys, int(np.argmin(good)))
        return Verdict(
            pages=len(pages),
            nbytes=len(pages) * self._layout.page_bytes,
            digest=digest % 2**64,
            expected_digest=expected % 2**64,
            wrong_pages=wrong,
            first=first,
        )

    def _keys(self, room: RoomId, index: int, first: int, count: int) -> Words:
        base = np.uint64(word(self._seed, room, index))
        return mix(base + np.arange(first, first + count, dtype=np.uint64) * np.uint64(GOLDEN))

    def _expected(self, index: int, keys: Words) -> Words:
        block = self._blocks[index]
        weights = self._weights[: len(block)]
        digests: Words = (block * weights).sum() + keys * weights.sum()
        return digests

    def _steps(
        self, pages: npt.NDArray[np.int64], keys: Words, words: int
    ) -> list[tuple[npt.NDArray[np.int64], Words]]:
        step = len(self._scratch) // words
        return [(pages[at : at + step], keys[at : at + step]) for at in range(0, len(pages), step)]

    def _look(
        self, pool: Words, block: Words, pages: npt.NDArray[np.int64], keys: Words
    ) -> tuple[Words, npt.NDArray[np.bool_]]:
        """Return the digest of every page, and whether every word of it is right."""
        weights = self._weights[: len(block)]
        digests, good = np.empty(len(pages), np.uint64), np.empty(len(pages), np.bool_)
        at = 0
        for chosen, key in self._steps(pages, keys, len(block)):
            here = slice(at, at + len(chosen))
            at = here.stop
            shape = (len(chosen), len(block))
            rows = self._scratch[: shape[0] * shape[1]].reshape(shape)
            equal = self._equal[: shape[0] * shape[1]].reshape(shape)
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
        pages: npt.NDArray[np.int64],
        keys: Words,
        page: int,
    ) -> Difference:
        found = array[pages[page]]
        expected = (self._blocks[index] + keys[page]).view(np.uint8)
        offset = int(np.argmax(found != expected))
        buffer = self._layout.buffers[index]
        return Difference(
            buffer=buffer.name,
            layer=buffer.layer,
            page=page,
            pool_page=int(pages[page]),
            offset=offset,
            expected=int(expected[offset]),
            found=int(found[offset]),
        )
