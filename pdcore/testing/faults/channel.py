"""A control channel whose outgoing messages go wrong as a schedule says."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import attrs

from pdcore.config.auth_key import AuthKey
from pdcore.errors import AuthenticationError
from pdcore.model import Incarnation
from pdcore.testing.faults.schedule import Fault, Schedule
from pdcore.wire import MESSAGE_KINDS, Channel, ConnectionEvent, Message, Route

__all__ = ["FaultyChannel"]

Frames = list[bytes | memoryview]


@attrs.frozen(eq=False)
class _HeldMessage:
    route: Route
    frames: Frames
    due: float
    blocks: bool


class FaultyChannel(Channel):
    """A channel that drops, repeats, delays, reorders or corrupts what it sends; it receives as it is.

    What is held back goes out with a tick. The sockets' lock guards it.
    """

    def __init__(
        self,
        schedule: Schedule,
        name: str,
        incarnation: Incarnation,
        *,
        on_message: Callable[[Route, Message], None],
        on_tick: Callable[[], None],
        tick: float,
        max_message_bytes: int,
        auth_key: AuthKey | None = None,
        on_refused: Callable[[Route, AuthenticationError], None] | None = None,
        on_connection: Callable[[Route | None, ConnectionEvent], None] | None = None,
        on_unreachable: Callable[[Route], None] | None = None,
        dead_after: float = 0.0,
    ) -> None:
        self._schedule = schedule
        self._place = name
        self._held: list[_HeldMessage] = []
        super().__init__(
            name,
            incarnation,
            on_message=on_message,
            on_tick=partial(self._tick_and_flush, on_tick),
            tick=tick,
            max_message_bytes=max_message_bytes,
            auth_key=auth_key,
            on_refused=on_refused,
            on_connection=on_connection,
            on_unreachable=on_unreachable,
            dead_after=dead_after,
        )

    def _transmit(self, route: Route, frames: Frames) -> Exception | None:
        decision = self._schedule.message(f"{self._place} {_kind(frames)}")
        due = time.monotonic() + decision.seconds
        match decision.fault:
            case Fault.DROP:
                return None
            case Fault.CORRUPT:
                frames = [frame[: len(frame) * 2 // 3] if _is_head(frame) else frame for frame in frames]
            case Fault.REORDER:
                self._held.append(_HeldMessage(route, frames, due, blocks=False))
                return None
            case Fault.DELAY:
                self._held.append(_HeldMessage(route, frames, due, blocks=True))
                return None
            case Fault.DUPLICATE:
                self._held.append(_HeldMessage(route, frames, due, blocks=False))
        if any(held.blocks and held.route == route for held in self._held):
            self._held.append(_HeldMessage(route, frames, 0.0, blocks=True))
            return None
        return super()._transmit(route, frames)

    def _tick_and_flush(self, on_tick: Callable[[], None]) -> None:
        on_tick()
        with self._sockets.lock:
            self._flush()

    def _flush(self) -> None:
        now, blocked, kept = time.monotonic(), set[Route](), list[_HeldMessage]()
        for held in self._held:
            waits = now < held.due and not self._schedule.healed
            if waits or (held.blocks and held.route in blocked):
                kept.append(held)
                if held.blocks:
                    blocked.add(held.route)
            else:
                super()._transmit(held.route, held.frames)
        self._held = kept


def _kind(frames: Frames) -> str:
    head = next(filter(_is_head, frames))
    return MESSAGE_KINDS[int.from_bytes(head[6:8], "big")].__name__


def _is_head(frame: bytes | memoryview) -> bool:
    return bytes(frame[:4]) == b"PDKV"
