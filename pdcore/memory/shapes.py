"""Whether memory is shaped as its layout says, as far as its shape tells. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pdcore.contract.regions import Region
from pdcore.errors import LayoutError
from pdcore.layout.kv import KVLayout, PageOrder

__all__ = ["require_items_first", "require_order"]

EXPLICIT = 3
"""A page of at least so many dimensions names each of them: its tokens, its heads, and what is in them."""


def require_items_first(regions: Sequence[Region], counts: Sequence[int]) -> None:
    """Check that the first dimension of memory counts pages or slots (``counts``), or what is in them.

    ``(2, blocks, ...)`` has the bytes of as many pages that hold K and V, and is none of them.

    Raises:
        LayoutError: it does not.
    """
    for region, items in zip(regions, counts, strict=True):
        shape = region.shape
        if len(shape) > 1 and shape[0] % items:
            raise LayoutError(
                f"region {region.name!r} does not begin with its items",
                f"shape {shape}, {items} items (pages or slots)",
                "hand in memory whose first dimension counts the items; of a tensor t of shape "
                "(2, blocks, ...) hand in t[0] as k and t[1] as v",
            )


def require_order(layout: KVLayout, regions: Sequence[Region]) -> None:
    """Check that the tokens of pages of K or V, or both, are where the order of the buffer has them.

    Raises:
        LayoutError: the page size is found in another dimension, or the first one counts the tokens of all
            pages. Where another is as long, nobody can tell.
    """
    for buffer, region in zip(layout.buffers, regions, strict=False):
        order, pages = layout.order_of(buffer), layout.pages_of(buffer)
        if buffer.part in ("k", "v", "kv") and _elsewhere(order, pages, layout.page_size, region.shape):
            raise LayoutError(
                f"region {region.name!r} does not look like pages of order {order}",
                f"shape {region.shape}, {pages} pages of {layout.page_size} tokens",
                "name the order of the memory in the layout (KVLayout order=...); if it is that, hand the "
                "memory in flat, as (pages, bytes)",
            )


def _elsewhere(order: PageOrder, pages: int, page_size: int, shape: tuple[int, ...]) -> bool:
    """Whether memory of some shape has its tokens elsewhere than pages of some order."""
    if len(shape) > EXPLICIT and shape[0] == pages:
        page = shape[1:]
        return page[order.dims.index("token")] != page_size and page_size in page
    # (tokens of all pages, heads, values), as SGLang has it
    rows = len(shape) >= EXPLICIT and shape[0] == pages * page_size != pages
    return rows and order.dims[0] != "token" and page_size not in shape[1:-1]
