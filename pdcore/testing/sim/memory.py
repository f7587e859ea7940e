"""The pages of one side: who has them, what is in them, and what must never happen."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Memory", "ViolationError"]

NOBODY = 0


class ViolationError(Exception):
    """An invariant of ``docs/INVARIANTS.md`` does not hold."""


class Memory:
    """``owner`` is the number of who has a page, ``content`` what was last written to it, per writer."""

    def __init__(self, name: str, pages: int) -> None:
        self.name = name
        self.free = list(range(pages))
        self.owner = [NOBODY] * pages
        self.content: list[dict[int, tuple[int, int]]] = [{} for _ in range(pages)]

    def take(self, count: int, serial: int) -> list[int] | None:
        """Give pages to a request, if so many are free."""
        if len(self.free) < count:
            return None
        taken = [self.free.pop() for _ in range(count)]
        for page in taken:
            self.owner[page] = serial
            self.content[page] = {}
        return taken

    def release(self, pages: Sequence[int], serial: int) -> None:
        """Take pages back."""
        for page in pages:
            if self.owner[page] != serial:
                raise ViolationError(f"{self.name}: page {page} of request {serial} is released twice")
            self.owner[page] = NOBODY
        self.free.extend(pages)

    def write(self, page: int, serial: int, writer: int, value: tuple[int, int]) -> None:
        """Write what a request was promised; the page must be its own still."""
        if self.owner[page] != serial:
            now = f"request {self.owner[page]} has it" if self.owner[page] else "it is free"
            raise ViolationError(
                f"{self.name}: bytes of request {serial} land in page {page}, but {now} (invariant 2)"
            )
        self.content[page][writer] = value
