"""How an array lies in memory, and whether it is a row of items that can be described. Pure."""

from __future__ import annotations

import math

import attrs

__all__ = ["Extent", "are_items"]


def are_items(length: int, item_len: int, item_stride: int) -> bool:
    """Whether ``length`` bytes are whole items: neighbours, or so far apart without the last gap."""
    if item_stride:
        return item_stride >= item_len > 0 and length >= item_len and (length - item_len) % item_stride == 0
    return item_len == 0 or length % item_len == 0


@attrs.frozen
class Extent:
    """How an array lies in memory: lengths and strides by dimension, and the size of an element, in bytes."""

    lengths: tuple[int, ...] = (0,)
    strides: tuple[int, ...] = (1,)
    element: int = 1

    @property
    def item_len(self) -> int:
        """Bytes of what the first dimension counts."""
        return math.prod(self.lengths[1:]) * self.element

    @property
    def dense(self) -> bool:
        """Whether all of it is C-contiguous."""
        return self._contiguous_from(0)

    @property
    def describable(self) -> bool:
        """Whether it is dense, or its items are and follow one another with gaps."""
        if 0 in self.lengths:
            return False
        return self.dense or (self._contiguous_from(1) and self.strides[0] > self.item_len)

    @property
    def nbytes(self) -> int:
        """Bytes from its first to its last one."""
        return self.item_len if not self.lengths else self.item_len + self._gap * (self.lengths[0] - 1)

    @property
    def _gap(self) -> int:
        return self.item_len if self.dense else self.strides[0]

    def _contiguous_from(self, first: int) -> bool:
        expected = self.element
        for length, stride in reversed(list(zip(self.lengths, self.strides, strict=True))[first:]):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True
