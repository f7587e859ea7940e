"""The pump: drives the agent in place of NIXL's own progress thread, which burns a core for ever."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable

from pdcore.host.fork import Birthplace

__all__ = ["Pump"]

BUSY, IDLE = 0.0002, 0.01
"""Seconds between two turns, while rooms are expected and while none is. A connection's first contact
waits for one idle turn."""


class Pump:
    """Calls ``turn`` on the thread ``pdcore-nixl-pump-<name>``: often while ``expect`` said so, else rarely.

    The lock guards ``_busy`` and ``_stopped``; setting either wakes the thread.
    """

    def __init__(self, name: str, turn: Callable[[], None]) -> None:
        self._turn = turn
        self._woken = threading.Condition()
        self._busy = False
        self._stopped = False
        self._birthplace = Birthplace()
        self._thread = threading.Thread(target=self._run, name=f"pdcore-nixl-pump-{name}", daemon=True)
        self._thread.start()
        _running.add(self)

    def expect(self, rooms: int) -> None:
        """Turn often from now on, or rarely if no room is expected."""
        if (busy := rooms > 0) is self._busy:
            return
        with self._woken:
            self._busy = busy
            self._woken.notify()

    def stop(self) -> None:
        """End the thread."""
        with self._woken:
            self._stopped = True
            self._woken.notify()
        self._thread.join()

    @property
    def ours(self) -> bool:
        """Whether its thread is of this process, not of the one that this was forked from."""
        return not self._birthplace.left

    def _run(self) -> None:
        while not self._stopped:
            self._turn()
            with self._woken:
                if not self._stopped:
                    # UCX's sockets cannot be waited on from here, so the turns are timed.
                    self._woken.wait(BUSY if self._busy else IDLE)


_running: weakref.WeakSet[Pump] = weakref.WeakSet()


def _stop_all() -> None:
    """The program ends and did not close its engines. Python ends a thread that comes back from native code
    then by unwinding its stack, through frames of NIXL's binding that abort the process at that."""
    for pump in list(_running):
        if pump.ours:
            pump.stop()


atexit.register(_stop_all)
