"""Where what prefill says of rooms meets the receivers."""

from __future__ import annotations

from collections import Counter
from functools import partial

from pdcore.decode.receiver import KVReceiver
from pdcore.decode.receivers import Receivers
from pdcore.decode.source import PrefillSource
from pdcore.decode.verification import ArrivedVerification
from pdcore.errors import FailureCode, KVTransferError, PDCoreError
from pdcore.memory.metadata_buffers import AuxDataCodec
from pdcore.memory.pools import Pools
from pdcore.wire import AuxRow, Digests, Released, RoomStatus, Standing

__all__ = ["OfARoom", "Reception"]

OfARoom = RoomStatus | AuxRow | Digests | Released | Standing
"""What a prefill rank says of one room."""


class Reception:
    """Belongs to the control thread. ``counts`` are the channel's."""

    def __init__(
        self, receivers: Receivers, verifier: ArrivedVerification, pools: Pools, counts: Counter[str]
    ) -> None:
        self._receivers, self._verifier, self._counts = receivers, verifier, counts
        self._aux_codec = AuxDataCodec(pools.aux) if pools.aux else None

    def take(self, source: PrefillSource, message: OfARoom) -> None:
        """Hand a message to the room that it is about; whatever that raises ends the room."""
        receiver = self._receivers.meant(source, message.room, message.generation)
        if receiver is None:
            self._counts["stale"] += 1
        else:
            receiver.attempt(partial(self._hand, receiver, source, message))

    def _hand(self, receiver: KVReceiver, source: PrefillSource, message: OfARoom) -> None:
        if isinstance(message, RoomStatus):
            receiver.on_status(source, message)
        elif isinstance(message, AuxRow):
            self._on_aux(receiver, message)
        elif isinstance(message, Released):
            receiver.drained(source)
        elif isinstance(message, Standing):
            receiver.on_standing(source, message.waits_for)
        elif not self._verifier.check(receiver, source, message):
            self._counts["unexpected"] += 1

    def _on_aux(self, receiver: KVReceiver, message: AuxRow) -> None:
        if self._aux_codec is None or receiver.aux_slot is None:
            return
        try:
            self._aux_codec.decode(receiver.aux_slot, message.row)
        except PDCoreError as error:
            failure = KVTransferError(FailureCode.AUX, error.happened, error.there_is, error.to_do)
            receiver.give_up(failure)
