"""In which order a page lists its tokens, its heads, and its keys and values. Pure descriptions."""

# ruff: noqa: S105 - the tokens of a text, no secrets
from __future__ import annotations

from enum import Enum

__all__ = ["PageOrder"]


class PageOrder(Enum):
    """The dimensions of a page (``dims``, the outermost first). Within them lie the values of one head of
    one token.

    ``TOKEN_HEAD`` and ``HEAD_TOKEN`` are a K or a V buffer; engines call them NHD and HND. Orders with
    ``KV`` are of a buffer in which K and V are fused, K first: in halves of a page (``KV_...``), per token
    (``TOKEN_KV_HEAD``), per head (``HEAD_KV_TOKEN``), or both of one head of one token side by side
    (``..._KV``, where they need not be of one width).

    vLLM keeps ``(blocks, head, token, K|V)`` on the CPU: ``HEAD_TOKEN_KV``. Its FlashInfer cache
    ``(blocks, 2, ...)`` is ``KV_TOKEN_HEAD``, or ``KV_HEAD_TOKEN`` in the HND layout.
    """

    TOKEN_HEAD = "token head"
    HEAD_TOKEN = "head token"
    KV_TOKEN_HEAD = "kv token head"
    KV_HEAD_TOKEN = "kv head token"
    TOKEN_KV_HEAD = "token kv head"
    TOKEN_HEAD_KV = "token head kv"
    HEAD_KV_TOKEN = "head kv token"
    HEAD_TOKEN_KV = "head token kv"

    def __init__(self, names: str) -> None:
        self.dims = tuple(names.split())

    @property
    def fused(self) -> bool:
        """Whether a buffer holds both K and V."""
        return "kv" in self.dims

    def rows(self, page_size: int) -> int:
        """Return how often a page of ``page_size`` tokens lists its heads: within each, heads are neighbours.

        So many pieces a page falls into when TP ranks cut it: one per token if tokens come first, and one
        in all if heads do.
        """
        extents = {"token": page_size, "kv": 2}
        rows = 1
        for dim in self.dims[: self.dims.index("head")]:
            rows *= extents[dim]
        return rows

    def __str__(self) -> str:
        return f"({', '.join(self.dims)})"
