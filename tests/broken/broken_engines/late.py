"""Engines whose bytes come later than they say."""

from __future__ import annotations

import contextlib
import threading

from broken_engines.honest import Honest
from pdcore.contract.engine import Peer, RawWrite
from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.model import Deadline, Role


class EarlyDone(Honest):
    """Says DONE of a large batch half a second before it lands."""

    seconds, least = 0.5, 16 << 20

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        if batch.nbytes < self.least:
            return super().do_write(peer, batch)
        late = threading.Timer(self.seconds, super().do_write, (peer, batch))
        late.daemon = True
        late.start()
        return Finished()


class SoonDone(EarlyDone):
    """Says DONE of any batch a millisecond before it lands."""

    seconds, least = 0.001, 0


class PollsEarly(Honest):
    """Tells the truth to who waits, and DONE to who polls."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return Early(threading.Thread(target=super().do_write, args=(peer, batch), daemon=True))


class Early(Transfer):
    quiescence = Quiescence.DRAINED

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread
        thread.start()

    def poll(self) -> TransferState:
        return TransferState.DONE

    def wait(self, deadline: Deadline) -> TransferState:
        self._thread.join(deadline.remaining())
        return TransferState.DONE


class Ghost(Honest):
    """Writes a batch once more, some time later, whatever became of it."""

    seconds = 0.7

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.haunted = False

    def tempting(self, batch: WriteBatch, transfer: Transfer) -> bool:
        """Whether to come back to a batch."""
        return transfer.poll() is TransferState.FAILED

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        if self.role is Role.PREFILL and not self.haunted and self.tempting(batch, transfer):
            self.haunted = True
            late = threading.Timer(self.seconds, _haunt, (self.prepare_raw(peer, batch),))
            late.daemon = True
            late.start()
        return transfer


class GhostOfDone(Ghost):
    def tempting(self, batch: WriteBatch, transfer: Transfer) -> bool:
        return batch.nbytes > 1 << 20


def _haunt(raw: RawWrite) -> None:
    with contextlib.suppress(OSError):
        raw()


class ClosesEarly(Honest):
    """Has a thread copy, for which close does not wait."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        raw, done = self.prepare_raw(peer, batch), threading.Event()
        going = threading.Thread(target=self._go_on, args=(raw, done), daemon=True)
        going.start()
        done.wait()
        return Finished()

    def _go_on(self, raw: RawWrite, done: threading.Event) -> None:
        with contextlib.suppress(OSError):
            raw()
            done.set()
            for _ in range(20):
                raw()


class RevokesInWords(Honest):
    """Calls a writer silent that it has not stopped."""

    def revoke(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        return Quiescence.DRAINED
