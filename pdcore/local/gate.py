"""The receiving side's gate: who may write here, and the proof that somebody no longer does.

The kernel lets a process write to another for as long as both live; it has no way to take that back.
So the engines agree on one:

* A writer notes on its own page that a batch is under way. Then, before each bounded chunk, it reads its
  cell of the receiver's gate, and copies only if its name is in it.
* A receiver that revokes a writer wipes the cell, and then reads the writer's page until no batch
  for this engine is under way there.

This is Dekker's protocol: both store first and then load, with a system call in between that takes
locks in the kernel and so orders the two. Either the writer sees the wiped cell and stops, or the
receiver sees the batch and waits. A cell holds the key of the registration and the nonce of the writer,
or zeros: a torn read matches nobody, a reused pid or another engine matches nobody, and after
memory was registered anew, a handle to the old memory matches nobody.

A batch is noted from its submission to its end, not per chunk: a batch that was suspended
between two chunks while its writer was revoked and admitted again could otherwise go on.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import threading

import numpy as np

from pdcore.contract.outcome import Quiescence
from pdcore.errors import EngineError
from pdcore.local import kernel
from pdcore.local.address import LocalAddress
from pdcore.local.page import BUSY, CELL, NONCE, PAGE_BYTES, SLOTS, CellArray
from pdcore.model import Deadline

__all__ = ["WriteGate", "prove_silent"]

LONGEST_PAUSE = 0.008  # seconds


class WriteGate:
    """The writers admitted to this engine's memory; ``key`` stands for the current registration."""

    def __init__(self, cells: CellArray) -> None:
        self._cells = cells
        self._lock = threading.Lock()  # guards all below
        self._slots: dict[LocalAddress, int] = {}
        self.key = secrets.token_bytes(NONCE)

    def admit(self, writer: LocalAddress) -> None:
        """Let a writer in; idempotent.

        Raises:
            EngineError: as many writers are admitted as there are cells.
        """
        with self._lock:
            if writer in self._slots:
                return
            taken = set(self._slots.values())
            slot = next((s for s in range(SLOTS) if s not in taken), None)
            if slot is None:
                raise EngineError(
                    "the gate has no free cell for another writer",
                    f"{len(taken)} writers are admitted",
                    "revoke the writers that no longer send",
                )
            self._slots[writer] = slot
            self._cells[slot] = np.frombuffer(self.key + writer.nonce, np.uint8)

    def expel(self, writer: LocalAddress) -> None:
        """Let a writer's next chunk fail; idempotent."""
        with self._lock:
            slot = self._slots.pop(writer, None)
            if slot is not None:
                self._cells[slot] = 0

    def expel_all(self) -> tuple[LocalAddress, ...]:
        """Expel everyone and change the key; return who was admitted."""
        with self._lock:
            writers = tuple(self._slots)
            self._slots.clear()
            self._cells[:] = 0
            self.key = secrets.token_bytes(NONCE)
        return writers


def prove_silent(writer: LocalAddress, target: bytes, deadline: Deadline) -> Quiescence:
    """Wait until an expelled writer has no batch under way to the engine whose nonce is ``target``.

    DRAINED: its page says so, its engine closed, or its process ended with all its threads.
    """
    try:
        process = os.pidfd_open(writer.pid)
    except ProcessLookupError:
        return Quiescence.DRAINED
    try:
        if writer.exited():
            return Quiescence.DRAINED
        death = select.poll()
        death.register(process, select.POLLIN)
        pause = 0.001
        while _may_write(writer, target):
            # The writer's page is memory of another process: it can be looked at, but cannot wake
            # anyone. The writer's death can, and ends the pause.
            if death.poll(1000 * min(pause, deadline.remaining())):
                return Quiescence.DRAINED
            if deadline.expired:
                return Quiescence.IN_FLIGHT
            pause = min(2 * pause, LONGEST_PAUSE)
        return Quiescence.DRAINED
    finally:
        os.close(process)


def _may_write(writer: LocalAddress, target: bytes) -> bool:
    try:
        page = kernel.read_memory(writer.pid, writer.page, PAGE_BYTES)
    except (ProcessLookupError, PermissionError):
        # A dying process loses its memory before its last thread ends: only the pidfd proves death.
        return True
    except OSError as error:
        return error.errno != errno.EFAULT
    if len(page) < PAGE_BYTES or page[:NONCE] != writer.nonce:
        return False
    under_way = np.frombuffer(page, np.uint8).reshape(-1, CELL)[1 + SLOTS :]
    mine = (under_way[:, :NONCE] == np.frombuffer(target, np.uint8)).all(axis=1)
    return bool(under_way[mine, BUSY].any())
