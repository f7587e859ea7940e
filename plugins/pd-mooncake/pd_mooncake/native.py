"""The one native engine of this process: shared by adapters of equal settings, replaced when wedged."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from enum import Enum
from functools import partial

import attrs
import numpy as np
import numpy.typing as npt

from pd_mooncake.library import Library, NativeSettings, TransferEngineApi, announced
from pdcore.contract.budget import EntryBudget
from pdcore.contract.regions import Region
from pdcore.errors import EngineError, RegistrationError
from pdcore.host.address import join, parse_address
from pdcore.model import Deadline

__all__ = ["BLOCKS", "Contact", "Native", "acquire", "release"]

BLOCKS = 1024
"""Blocks outstanding per peer. Beyond 2,048 the engine refuses whole calls and may wedge the peer."""

MAX_REPLACED = 8
"""Engines that may wedge; more than this says that something else is wrong."""

SCRATCH_BYTES = 64
KNOCKS = 64
"""Reads that reach every connection to a peer: there are at most 16."""
KNOCK_SECONDS = 0.2
_CODES = {
    -1: "it refuses the address or the length",
    -3: "it does not know the address",
    -7: "it overlaps memory that is registered already",
}


class Contact(Enum):
    """What a peer's control port does. It is closed only when the peer's engine or process has ended."""

    ANSWERS = "it answers"
    GONE = "its control port is closed: the engine has ended"
    SILENT = "its control port does not answer: the worker is stopped, hung, or cut off"


@attrs.define
class _Registered:
    length: int
    users: int


class Native:
    """Wraps the engine of one process.

    The lock guards all below. The newest of ``_engines`` sends; the older ones only receive, from peers that
    were given their names (``_named``); another ends with the last write through it. ``_peers`` counts who
    is connected to a segment; ``_parted`` has an address of those that nobody is connected to any more.
    """

    def __init__(self, library: Library, settings: NativeSettings) -> None:
        self.settings = settings
        self.users = 1
        self.closing = threading.Event()
        self._library = library
        self._lock = threading.Lock()
        self._regions: dict[int, _Registered] = {}
        self._met: dict[str, str] = {}
        self._scratch: npt.NDArray[np.uint8] = np.zeros(SCRATCH_BYTES, np.uint8)
        self._budgets: defaultdict[str, EntryBudget] = defaultdict(partial(EntryBudget, BLOCKS))
        self._peers: Counter[str] = Counter()
        self._parted: dict[str, int] = {}
        self._named: list[TransferEngineApi] = []
        self._wedged = 0
        self._engines = [self._start()]

    def name(self) -> str:
        """Return how peers shall name this engine from now on: ``host:port``."""
        with self._lock:
            engine = self._engines[-1]
            self._named = [engine, *(known for known in self._named if known is not engine)]
        return join(self.settings.host, engine.get_rpc_port())

    def budget(self, segment: str) -> EntryBudget:
        """Return the blocks that may be outstanding at a peer, over all threads of this process."""
        with self._lock:
            return self._budgets[segment]

    def register(self, region: Region) -> None:
        """Register a region, or count one more user of the same memory.

        Raises:
            RegistrationError: naming the region and what the engine says.
        """
        with self._lock:
            known = self._regions.get(region.address)
            if known is not None and known.length == region.length:
                known.users += 1
                return
            code = self._engines[-1].register_memory(region.address, region.length)
            if code == 0:
                self._regions[region.address] = _Registered(region.length, 1)
                return
        raise RegistrationError(
            f"the engine does not register region {region.name!r}",
            f"code {code}, {_CODES.get(code, 'see its log')}: {region.length} bytes at {region.address:#x}",
            "register each pool once, with its true length",
        )

    def unregister(self, address: int) -> None:
        """Take one user of a region back."""
        with self._lock:
            known = self._regions[address]
            known.users -= 1
            if known.users == 0:
                del self._regions[address]
                for engine in self._engines:
                    engine.unregister_memory(address)

    def answers(self, segment: str, address: int) -> bool:
        """Whether one byte can be read from a peer's memory."""
        scratch = self._scratch.ctypes.data
        return self._engines[-1].transfer_sync_read(segment, scratch, address, 1) == 0

    def contact(self, segment: str, deadline: Deadline) -> Contact:
        """Ask a peer's control port from outside the engine.

        First contact with a hung peer would hold the engine's lock for a minute, and with it every
        transfer to healthy peers.
        """
        there = parse_address(segment, "the segment name of a Mooncake engine")
        try:
            answer = announced(there.host, there.port, deadline.remaining())
        except ConnectionRefusedError:
            return Contact.GONE
        return Contact.SILENT if answer is None else Contact.ANSWERS

    def meet(self, segment: str, incarnation: str) -> None:
        """Note whom a segment name stands for; a new one under an old name needs a new engine.

        The engine caches a peer's data port by its name for ever.
        """
        with self._lock:
            stale = self._met.get(segment, incarnation) != incarnation
            self._met[segment] = incarnation
            engine = self._engines[-1]
        if stale:
            self._renew(engine)

    def joined(self, segment: str) -> None:
        """Count one more who is connected to a segment."""
        with self._lock:
            self._peers[segment] += 1
            self._parted.pop(segment, None)
        self._tidy()

    def parted(self, segment: str, address: int) -> None:
        """Count one less; ``address`` lies in the memory of the peer."""
        with self._lock:
            self._peers[segment] -= 1
            if self._peers[segment] == 0:
                del self._peers[segment]
                self._parted[segment] = address
        self._tidy()

    def _tidy(self) -> None:
        """Let the engine go of its connections to peers that have ended, which it only finds out by use."""
        with self._lock:
            parted = dict(self._parted)
        for segment, address in parted.items():
            if self.contact(segment, Deadline.after(KNOCK_SECONDS)) is not Contact.GONE:
                continue
            with self._lock:
                if self._parted.pop(segment, None) is None:
                    continue
                self._budgets.pop(segment, None)
                engines = list(self._engines) if self.settings.protocol == "tcp" else []
            for engine in engines:
                here = [self._scratch.ctypes.data] * KNOCKS
                engine.batch_transfer_sync_read(segment, here, [address] * KNOCKS, [1] * KNOCKS)

    def replace(self, wedged: TransferEngineApi) -> None:
        """Send with a new engine from now on, unless another thread has seen to that.

        Raises:
            EngineError: too many were replaced.
        """
        with self._lock:
            counts = self._engines[-1] is wedged
            self._wedged += counts
            if counts and self._wedged > MAX_REPLACED:
                raise EngineError(
                    "the Mooncake engine was replaced too often",
                    f"{MAX_REPLACED} engines of this process are wedged",
                    "restart this process, and look at the network",
                )
        self._renew(wedged)

    def _renew(self, old: TransferEngineApi) -> None:
        with self._lock:
            if self._engines[-1] is not old:
                return
            engine = self._start()
            for address, region in self._regions.items():
                engine.register_memory(address, region.length)
            # An engine that no peer can name ends here, or with the write that uses it: for up to a second.
            self._engines = [*self._named, engine]

    @property
    def current(self) -> TransferEngineApi:
        """The engine that sends now."""
        return self._engines[-1]

    def destroy(self) -> None:
        """End all engines. Each takes up to a second, in which the library holds the interpreter."""
        self.closing.set()
        with self._lock:
            self._engines.clear()
            self._named.clear()

    def _start(self) -> TransferEngineApi:
        engine = self._library.start(self.settings)
        engine.register_memory(self._scratch.ctypes.data, SCRATCH_BYTES)
        return engine


_process = threading.Lock()  # guards _native
_native: Native | None = None


def acquire(library: Library, settings: NativeSettings) -> Native:
    """Return this process's engine, started if there is none.

    Raises:
        EngineError: one runs with other settings, or it does not start.
    """
    global _native
    with _process:
        if _native is None:
            _native = Native(library, settings)
        elif _native.settings != settings:
            raise EngineError(
                "this process already runs a Mooncake engine with other settings",
                f"{_native.settings} runs, {settings} was asked for",
                "use the same options for all managers of a process, or another process",
            )
        else:
            _native.users += 1
        return _native


def release(native: Native) -> None:
    """Give a user back; the last one ends the engine."""
    global _native
    with _process:
        native.users -= 1
        if native.users == 0:
            native.destroy()
            _native = None
