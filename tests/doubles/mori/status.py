"""TransferStatus: the state machine of one transfer, and waiting for many."""

# ruff: noqa: N802  the method names are the library's
from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from .binding import Int32, Native, binding
from .values import StatusCode

INIT, IN_PROGRESS, SUCCESS = StatusCode.INIT, StatusCode.IN_PROGRESS, StatusCode.SUCCESS


class TransferStatus(Native):
    """INIT, then IN_PROGRESS, then SUCCESS or an error; waits return at once on INIT."""

    @binding
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._code, self._message = INIT, ""

    @binding
    def Code(self) -> StatusCode:
        return self._code

    @binding
    def Message(self) -> str:
        return self._message

    @binding
    def Init(self) -> bool:
        return self._code == INIT

    @binding
    def InProgress(self) -> bool:
        return self._code == IN_PROGRESS

    @binding
    def Succeeded(self) -> bool:
        return self._code == SUCCESS

    @binding
    def Failed(self) -> bool:
        return int(self._code) > 10

    @binding
    def Update(self, code: StatusCode, message: str, /) -> None:
        with self._changed:
            if not self.Failed():
                self._code, self._message = code, message
                self._changed.notify_all()

    @binding
    def SetCode(self, code: StatusCode, /) -> None:
        with self._changed:
            self._code = code
            self._changed.notify_all()

    @binding
    def SetMessage(self, message: str, /) -> None:
        self._message = message

    @binding
    def Wait(self) -> None:
        self._wait(None)

    @binding
    def WaitFor(self, timeout_ms: Int32 = -1) -> StatusCode:
        return self._wait(None if timeout_ms < 0 else timeout_ms / 1000)

    def _wait(self, seconds: float | None) -> StatusCode:
        with self._changed:
            self._changed.wait_for(lambda: self._code != IN_PROGRESS, seconds)
            return self._code


@binding
def wait_all(statuses: Sequence[TransferStatus | None], timeout_ms: Int32) -> StatusCode:
    """Wait in order; the first code but SUCCESS wins, INIT too; a timeout of 0 looks at all of them once."""
    deadline = time.monotonic() + timeout_ms / 1000
    first, late = None, False
    for status in filter(None, statuses):
        code = status._wait(None if timeout_ms < 0 else max(0.0, deadline - time.monotonic()))
        if code == IN_PROGRESS:
            late = True
            if timeout_ms:
                break
        elif code != SUCCESS:
            first = first or code
            if timeout_ms == 0:
                break
    return first or (IN_PROGRESS if late else SUCCESS)
