"""Which requests the demo replays: prompt lengths from a trace file or from a seeded distribution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import msgspec
import numpy as np

from pdcore.errors import PDCoreError
from pdcore.model import RoomId

__all__ = ["Request", "WorkloadError", "from_distribution", "from_trace", "pages_needed", "refuse_too_long"]

MEDIAN_TOKENS = 2500
SIGMA = 0.8
LONGEST_TOKENS = 16384
"""The default distribution: lognormal, as prompt lengths are; it keeps ``make demo`` to seconds."""


class WorkloadError(PDCoreError):
    """The requests cannot be read, or cannot fit into the pools."""


@attrs.frozen
class Request:
    """One prompt to prefill: its room and its length in tokens."""

    room: RoomId
    tokens: int

    def pages(self, page_size: int) -> int:
        """Return how many pages of ``page_size`` tokens the prompt takes."""
        return -(-self.tokens // page_size)


class _TraceLine(msgspec.Struct):
    timestamp: int
    input_length: int


def from_trace(path: Path, count: int) -> tuple[Request, ...]:
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
    return tuple(Request(RoomId(room), tokens) for room, tokens in enumerate(lengths))


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


def from_distribution(count: int, seed: int, longest: int) -> tuple[Request, ...]:
    """Return ``count`` requests with seeded lognormal lengths of 1 to ``longest`` tokens (16,384 at most)."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN_TOKENS), SIGMA, count)
    lengths = np.clip(drawn, 1, min(longest, LONGEST_TOKENS)).astype(np.int64)
    return tuple(Request(RoomId(room), int(tokens)) for room, tokens in enumerate(lengths))


def pages_needed(requests: Sequence[Request], page_size: int, concurrency: int) -> int:
    """Return the pages of a pool that holds the longest request and ``concurrency - 1`` average ones.

    A larger pool would only be memory to touch; when longer requests meet, one waits.
    """
    pages = [r.pages(page_size) for r in requests]
    return max(pages) + (concurrency - 1) * -(-sum(pages) // len(pages))


def refuse_too_long(requests: Sequence[Request], page_size: int, num_pages: int, page_bytes: int) -> None:
    """Check that the longest request fits into a pool of ``num_pages`` pages of ``page_bytes`` bytes.

    Raises:
        WorkloadError: it doesn't; the message names the request, the pool and the memory it would take.
    """
    longest = max(requests, key=lambda r: r.tokens)
    if longest.pages(page_size) <= num_pages:
        return
    needed = 2 * longest.pages(page_size) * page_bytes / 2**30
    raise WorkloadError(
        f"request {longest.room} of {longest.tokens} tokens is longer than a pool",
        f"{num_pages} pages of {page_size} tokens on each side, which hold {num_pages * page_size} tokens",
        f"use --memory {np.ceil(needed * 10) / 10:.1f} (GiB for both pools), a smaller --model, "
        "or a trace with shorter requests",
    )
