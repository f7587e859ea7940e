"""An adapter's transfer, which may raise anything."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline

__all__ = ["GuardedTransfer"]

_log = logging.getLogger("pdcore.transfer")


class GuardedTransfer(Transfer):
    """A transfer that fails once it raised. Nobody can tell then when it has drained: UNKNOWN for ever.

    ``transfer`` is None for a write that raised instead of returning one. ``on_raise`` is called once.
    """

    def __init__(self, transfer: Transfer | None, on_raise: Callable[[], None]) -> None:
        self._transfer = Finished() if transfer is None else transfer
        self._untraceable = transfer is None
        self._on_raise = on_raise
        if self._untraceable:
            on_raise()

    def poll(self) -> TransferState:
        return self._ask(self._transfer.poll)

    def wait(self, deadline: Deadline) -> TransferState:
        return self._ask(partial(self._transfer.wait, deadline))

    @property
    def quiescence(self) -> Quiescence:
        if not self._untraceable:
            try:
                return self._transfer.quiescence
            except Exception as error:
                self._raised(error)
        return Quiescence.UNKNOWN

    def _ask(self, question: Callable[[], TransferState]) -> TransferState:
        if not self._untraceable:
            try:
                state = question()
            except Exception as error:
                self._raised(error)
            else:
                self.error = self._transfer.error
                return state
        return TransferState.FAILED

    def _raised(self, error: Exception) -> None:
        _log.exception("the engine raised while it was asked about a transfer")
        self._untraceable = True
        self._on_raise()
        self.error = KVTransferError(
            FailureCode.ENGINE,
            "the transfer engine raised instead of telling how a transfer stands",
            repr(error),
            "report it to the backend's author; the pages are safe when the engine is closed",
        )
