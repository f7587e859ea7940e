"""The receiving side: a thread per connection writes what it reads into registered memory only."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import attrs
import numpy as np

from pd_parcel import parcel
from pdcore.contract.outcome import Quiescence
from pdcore.contract.regions import OffsetArray

NOTHING: OffsetArray = np.zeros(0, np.uint64)


@attrs.frozen
class _Registered:
    key: bytes = b""
    addresses: OffsetArray = attrs.field(default=NOTHING, eq=False)
    lengths: OffsetArray = attrs.field(default=NOTHING, eq=False)


class _Guest:
    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.writer: bytes | None = None  # its endpoint, once it has greeted
        self.thread: threading.Thread


class Door:
    """Lets admitted writers in. ``expel`` and ``close`` return when the expelled can write no more."""

    def __init__(self, host: str) -> None:
        self._listener = socket.create_server((host, 0), backlog=64)
        self.host, self.port = self._listener.getsockname()[:2]
        self._lock = threading.Lock()  # guards all below
        self._registered = _Registered()
        self._admitted: set[bytes] = set()
        self._guests: set[_Guest] = set()
        self._open = True
        self._thread = threading.Thread(target=self._accept, name=f"pd-parcel-door-{self.port}", daemon=True)
        self._thread.start()

    def register(self, addresses: OffsetArray, lengths: OffsetArray) -> bytes:
        """Take writes into these regions; return the key that writers must show."""
        registered = _Registered(os.urandom(16), addresses, lengths)
        with self._lock:
            self._registered = registered
        return registered.key

    def deregister(self) -> None:
        """Take no writes any more; return when none is under way."""
        with self._lock:
            self._registered = _Registered()
        self._show_out(None, None)

    def admit(self, writer: bytes) -> None:
        """Let a writer in."""
        with self._lock:
            self._admitted.add(writer)

    def expel(self, writer: bytes, seconds: float) -> Quiescence:
        """Let it in no more; DRAINED: no byte of it can land."""
        with self._lock:
            self._admitted.discard(writer)
        return self._show_out(writer, seconds)

    def close(self) -> None:
        """Stop for good."""
        with self._lock:
            self._open = False
            self._registered = _Registered()
        with contextlib.suppress(OSError):  # wakes accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._show_out(None, None)

    def _of(self, writer: bytes | None) -> list[_Guest]:
        with self._lock:
            return [g for g in self._guests if writer is None or writer == g.writer]

    def _show_out(self, writer: bytes | None, seconds: float | None) -> Quiescence:
        guests = self._of(writer)
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.link.shutdown(socket.SHUT_RDWR)
        return self._join(guests, seconds)

    @staticmethod
    def _join(guests: list[_Guest], seconds: float | None) -> Quiescence:
        until = None if seconds is None else time.monotonic() + seconds
        for guest in guests:
            guest.thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return Quiescence.IN_FLIGHT if any(g.thread.is_alive() for g in guests) else Quiescence.DRAINED

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0 or not self._open:
                    return
                time.sleep(0.05)  # out of descriptors: the kernel tells nobody when there are some again
                continue
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            guest = _Guest(link)
            guest.thread = threading.Thread(
                target=self._serve, args=(guest,), name=f"pd-parcel-guest-{self.port}", daemon=True
            )
            with self._lock:
                if not self._open:
                    link.close()
                    return
                self._guests.add(guest)
                guest.thread.start()  # whoever finds the guest may join it

    def _serve(self, guest: _Guest) -> None:
        try:
            key, writer = parcel.receive_text(guest.link), parcel.receive_text(guest.link)
            with self._lock:
                guest.writer = writer
            while True:
                self._take(guest.link, key, writer)
        except (parcel.LostError, OSError):
            pass  # it left, or was shown out
        finally:
            with self._lock:
                self._guests.discard(guest)
            guest.link.close()

    def _take(self, link: socket.socket, key: bytes, writer: bytes) -> None:
        regions, offsets, lengths = table = parcel.receive_table(link)
        with self._lock:
            registered, admitted = self._registered, writer in self._admitted
        refused = self._refusal(table, registered, key, admitted)
        if refused:
            parcel.send_text(link, refused.encode())
            raise parcel.LostError(refused)
        targets = (offsets + registered.addresses[regions.astype(np.int64)]).tolist()
        for address, length in zip(targets, lengths.tolist(), strict=True):
            parcel.receive(link, parcel.memory(address, length))
        parcel.send_text(link, parcel.TAKEN)

    @staticmethod
    def _refusal(table: parcel.Table, registered: _Registered, key: bytes, admitted: bool) -> str:
        regions, offsets, lengths = table
        if not registered.key or key != registered.key:
            return "its memory is not registered any more"
        if not admitted:
            return "it does not expect this writer"
        if bool((regions >= len(registered.lengths)).any()):
            return "it has no such region"
        limits = registered.lengths[regions.astype(np.int64)]
        if bool(((offsets > limits) | (lengths > limits - np.minimum(offsets, limits))).any()):
            return "an entry leaves its region"
        return ""
