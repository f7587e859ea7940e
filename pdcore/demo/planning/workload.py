"""Which requests the demo replays: prompt lengths from a trace file or from a seeded distribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import msgspec
import numpy as np

from pdcore.errors import PDCoreError
from pdcore.model import RoomId

__all__ = [
    "LONGEST_TOKENS",
    "Prompt",
    "WorkloadError",
    "from_distribution",
    "from_trace",
    "page_limit",
    "pages_needed",
    "refuse_too_long",
    "with_prefix",
]

MEDIAN_TOKENS = 2500
SIGMA = 0.8
LONGEST_TOKENS = 16384
"""The default distribution: lognormal, as prompt lengths are; it keeps ``make demo`` to seconds."""


class WorkloadError(PDCoreError):
    """The requests cannot be read, or cannot fit into the pools."""


@attrs.frozen
class Prompt:
    """One prompt to prefill: its room, its length in tokens, and how many leading pages decode holds."""

    room: RoomId
    tokens: int
    held: int = 0

    def pages(self, page_size: int) -> int:
        """Return how many pages of ``page_size`` tokens the prompt takes."""
        return -(-self.tokens // page_size)


class _TraceLine(msgspec.Struct):
    timestamp: int
    input_length: int


def from_trace(path: Path, count: int) -> tuple[Prompt, ...]:
    """Return the first ``count`` requests of a trace: JSON lines with ``timestamp`` and ``input_length``.

    Arrival times are not replayed: the demo keeps a fixed number of requests in flight.

    Raises:
        WorkloadError: the file cannot be read, has fewer requests, or a line is malformed; the message
            names the file and the line.
    """
    decoder = msgspec.json.Decoder(_TraceLine)
    lengths: list[int] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if len(lengths) == count:
                    break
                if line.strip():
                    lengths.append(_length(decoder, path, number, line))
    except OSError as error:
        raise WorkloadError(
            f"the trace {path} cannot be read",
            f"{error.strerror or error}",
            "name a readable file, or leave --trace out to draw lengths from a distribution",
        ) from error
    if len(lengths) < count:
        raise WorkloadError(
            f"the trace {path} is too short",
            f"{len(lengths)} requests in the file, {count} asked for",
            f"ask for --requests {len(lengths)}" if lengths else "name a trace with at least one request",
        )
    return tuple(Prompt(RoomId(room), tokens) for room, tokens in enumerate(lengths))


def _length(decoder: msgspec.json.Decoder[_TraceLine], path: Path, number: int, line: bytes) -> int:
    try:
        tokens = decoder.decode(line).input_length
        reason = "" if tokens >= 1 else f"input_length is {tokens}"
    except msgspec.DecodeError as error:
        tokens, reason = 0, str(error)
    if reason:
        raise WorkloadError(
            f"line {number} of the trace {path} is malformed",
            f"{reason}, in {line[:80].decode(errors='replace').strip()!r}",
            'give every line the form {"timestamp": 0, "input_length": 512}, with at least 1 token',
        )
    return tokens


def from_distribution(count: int, seed: int, longest: int) -> tuple[Prompt, ...]:
    """Return ``count`` requests with seeded lognormal lengths of 1 to ``longest`` tokens (16,384 at most)."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN_TOKENS), SIGMA, count)
    lengths = np.clip(drawn, 1, min(longest, LONGEST_TOKENS)).astype(np.int64)
    return tuple(Prompt(RoomId(room), int(tokens)) for room, tokens in enumerate(lengths))


def pages_needed(requests: Sequence[Prompt], page_size: int, concurrency: int) -> int:
    """Return the pages of a pool that holds the longest request and ``concurrency - 1`` average ones.

    A larger pool would only be memory to touch; when longer requests meet, one waits.
    """
    pages = [r.pages(page_size) for r in requests]
    return max(pages) + (concurrency - 1) * -(-sum(pages) // len(pages))


def with_prefix(requests: Sequence[Prompt], fraction: float, page_size: int) -> tuple[Prompt, ...]:
    """Return the requests with that fraction of each one's pages, rounded down, held by decode."""
    return tuple(attrs.evolve(r, held=int(fraction * r.pages(page_size))) for r in requests)


def page_limit(memory: int, page_bytes: int, slot_bytes: int, slots: int) -> int:
    """Return how many pages a pool may have, so that all pools together take ``memory`` bytes.

    ``page_bytes`` and ``slot_bytes`` are those of one page and one request's slot over all pools.

    Raises:
        WorkloadError: the slots alone take more.
    """
    left = memory - slots * slot_bytes
    if left < page_bytes:
        raise WorkloadError(
            "the pools are too small for this model",
            f"{memory / 2**30:.2f} GiB for all of them; {slots} requests in flight keep state of "
            f"{slot_bytes / 2**20:.1f} MiB each",
            f"use --memory {_gib(slots * slot_bytes + 64 * page_bytes)}, or a smaller --concurrency "
            "or --page-size",
        )
    return left // page_bytes


def refuse_too_long(
    requests: Sequence[Prompt], page_size: int, num_pages: int, page_bytes: int, fixed_bytes: int = 0
) -> None:
    """Check that the longest request fits into pools of ``num_pages`` pages.

    A page takes ``page_bytes`` over all pools, which hold ``fixed_bytes`` of other state.

    Raises:
        WorkloadError: it doesn't; the message names the request, the pool and the memory it would take.
    """
    longest = max(requests, key=lambda r: r.tokens)
    if longest.pages(page_size) <= num_pages:
        return
    needed = longest.pages(page_size) * page_bytes + fixed_bytes
    raise WorkloadError(
        f"request {longest.room} of {longest.tokens} tokens is longer than a pool",
        f"{num_pages} pages of {page_size} tokens on each rank, which hold {num_pages * page_size} tokens",
        f"use --memory {_gib(needed)} (GiB for all pools), a smaller --model, "
        "or a trace with shorter requests",
    )


def _gib(nbytes: int) -> str:
    return f"{np.ceil(nbytes / 2**30 * 10) / 10:.1f}"
