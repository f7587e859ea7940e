"""Engines that take their process along, or never give it back."""

from __future__ import annotations

import ctypes
import os
import threading

import pytest

from broken_engines.honest import Honest
from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Transfer
from pdcore.contract.regions import RegionInfo, WriteBatch
from pdcore.model import Deadline


class Deadly(Honest):
    """Ends the process in one way at each of several points."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        if len(batch) > 1000:
            ctypes.string_at(8)
        return super().do_write(peer, batch)

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        if len(regions) > 1:
            raise KeyboardInterrupt
        return super().do_connect(endpoint, regions, native, deadline)

    def do_disconnect(self, peer: Peer) -> None:
        pytest.skip("there is no need to look")

    def do_deregister(self) -> None:
        os._exit(0)


class ExitLater(Honest):
    """Crashes as its library is unloaded."""

    def do_close(self) -> None:
        super().do_close()
        threading._register_atexit(os.abort)  # type: ignore[attr-defined]  # what C++ destructors do at exit


class HungConnect(Honest):
    """Never returns from connect."""

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        threading.Event().wait()
        raise AssertionError("unreachable")


class HungInterpreter(Honest):
    """Waits in a call that holds the interpreter lock."""

    def do_deregister(self) -> None:
        ctypes.PyDLL(None).sleep(1000)
