"""Lets prefill ranks write: each is admitted by the engine off the control thread, and revoked when lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from pdcore.contract.engine import TransferEngine
from pdcore.decode.facts import as_failure
from pdcore.decode.revocation import LostWriter, Revocations
from pdcore.errors import FailureCode, KVTransferError
from pdcore.events import Events, Stage, stage
from pdcore.host.shortage import require_descriptors
from pdcore.model import Deadline, Incarnation, PeerIdentity
from pdcore.protocol.actions import Admit, Revoke
from pdcore.protocol.stimuli import PeerConnected, PeerFailed, Stimulus, WriterSilent

__all__ = ["WriterAdmission"]


class WriterAdmission:
    """Owns a thread ``pdcore-admit-...`` for each rank that is being admitted, and those of the revocations.

    ``holds`` tells whether pages are unsafe because of a process. A rank that is lost while it is admitted is
    revoked after that: a proof of before it would not hold. The lock guards ``_admitting``, the latest thread
    of each process, ``_owed``, what is to be revoked when a thread ends, and ``_closed``.
    """

    def __init__(
        self,
        engine: TransferEngine,
        pairing: float,
        events: Events,
        revocations: Revocations,
        holds: Callable[[PeerIdentity], bool],
        feed: Callable[[Stimulus], None],
    ) -> None:
        self._engine, self._pairing, self._events = engine, pairing, events
        self._revocations, self._holds, self._feed = revocations, holds, feed
        self._lock = threading.Lock()
        self._admitting: dict[Incarnation, threading.Thread] = {}
        self._owed: dict[threading.Thread, Revoke] = {}
        self._closed = False

    def admit(self, do: Admit) -> None:
        """Begin to admit a rank's writes."""
        process = do.identity.incarnation
        with self._lock:
            if self._closed:
                return
            before, name = self._admitting.get(process), f"pdcore-admit-{process[:8]}"
            admitting = threading.Thread(target=self._run, args=(do, before), name=name, daemon=True)
            self._admitting[process] = admitting
            admitting.start()

    def revoke(self, do: Revoke) -> None:
        """Begin to prove that a lost rank writes no more."""
        with self._lock:
            admitting = self._admitting.get(do.identity.incarnation)
            if admitting is not None:
                self._owed[admitting] = do
                return
        self._revoke(do)

    def close(self, deadline: Deadline) -> None:
        """End the threads that admit new peers, and those that wait for lost ones."""
        with self._lock:
            self._closed = True
            admitting = list(self._admitting.values())
        self._revocations.close(deadline)
        for thread in admitting:
            thread.join(deadline.remaining())

    def _revoke(self, do: Revoke) -> None:
        identity, there = do.identity, do.description
        silent = partial(self._feed, WriterSilent(identity, do.upto))
        holds = partial(self._holds, identity)
        self._revocations.start(LostWriter(identity, there.endpoint, there.process, holds, silent))

    def _run(self, do: Admit, before: threading.Thread | None) -> None:
        """Runs on a thread of its own."""
        process, me = do.identity.incarnation, threading.current_thread()
        try:
            self._admit(do, before)
        finally:
            with self._lock:
                owed = self._owed.pop(me, None)
                if self._admitting.get(process) is me:
                    del self._admitting[process]
            if owed is not None:
                self._revoke(owed)

    def _admit(self, do: Admit, before: threading.Thread | None) -> None:
        """An earlier pairing with the same writer must be revoked first, ``before`` if it is not admitted."""
        peer, deadline = do.identity, Deadline.after(self._pairing)
        try:
            if before is not None:
                before.join(deadline.remaining())
            if (before is not None and before.is_alive()) or not self._revocations.finish(
                peer.incarnation, deadline
            ):
                raise KVTransferError(
                    FailureCode.PEER_LOST,
                    f"{peer} cannot pair again",
                    "its writes of the earlier pairing have not ended",
                    "look whether that worker is stopped",
                )
            if self._closed:
                return
            require_descriptors(self._engine.capabilities.descriptors_per_peer, f"to be connected to {peer}")
            with stage(self._events, Stage.ADMIT, peer=peer):
                self._engine.admit(do.description.endpoint)
        # An adapter may raise anything; the rooms that wait for the pairing must end.
        except Exception as error:
            self._feed(PeerFailed(do.route, peer, as_failure(FailureCode.ENGINE, error)))
        else:
            self._feed(PeerConnected(do.route, peer))
