"""Which process an object belongs to. A fork copies memory, not threads: in a child nobody serves the
sockets, ends the loops or gives back the locks of its parent's objects. So there they are let alone.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TypeVar

from pdcore.errors import ForkedError

__all__ = ["Birthplace", "kept"]


class _Forks:
    """How many forks lie between this process and the first that had this module, and which one it is."""

    count, pid = 0, os.getpid()


_kept: weakref.WeakSet[object] = weakref.WeakSet()


K = TypeVar("K")


def kept(kind: type[K]) -> list[K]:
    """Return the owners of a birthplace that are of this kind; in a child, its parent's as well."""
    return [owner for owner in list(_kept) if isinstance(owner, kind)]


def _keep_all() -> None:
    """In a child: no finaliser of what is the parent's may run, such as one that joins threads."""
    _Forks.count, _Forks.pid = _Forks.count + 1, os.getpid()
    for owner in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


os.register_at_fork(after_in_child=_keep_all)


class Birthplace:
    """The process in which ``owner`` was made; looking takes no system call and no lock."""

    __slots__ = ("_forks", "_pid")

    def __init__(self, owner: object = None) -> None:
        self._forks, self._pid = _Forks.count, _Forks.pid
        if owner is not None:
            _kept.add(owner)

    @property
    def left(self) -> bool:
        """Whether this is a child of that process, forked since."""
        return self._forks != _Forks.count

    def require(self, what: str) -> None:
        """Check that this is that process.

        Raises:
            ForkedError: it is a child.
        """
        if self._forks != _Forks.count:
            raise ForkedError(
                f"{what} was used in a forked child",
                f"it belongs to process {self._pid}, this is {os.getpid()}",
                "make what this process needs in it, and start workers with the 'spawn' method",
            )
