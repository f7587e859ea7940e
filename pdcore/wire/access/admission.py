"""Tells who was not let in, on either side of a connection, and asks where libzmq does not say why."""

from __future__ import annotations

from collections.abc import Callable

from pdcore.errors import AuthenticationError
from pdcore.wire.access.callers import Callers
from pdcore.wire.access.greeting import Greeting
from pdcore.wire.access.handshakes import Handshakes, bound_side_error
from pdcore.wire.monitor import Connection, ConnectionEvent
from pdcore.wire.sockets import Route, Sockets

__all__ = ["Admission"]


class Admission:
    """What becomes of the handshakes of one channel. Belongs to its owner thread.

    ``turned_away`` is called with the address of one that dialled us, ``refused`` with a dialled peer that
    will have none of us; both with the reason.
    """

    def __init__(
        self,
        sockets: Sockets,
        *,
        keyed: bool,
        turned_away: Callable[[str, AuthenticationError], None],
        refused: Callable[[Route, AuthenticationError], None],
    ) -> None:
        self._sockets, self._keyed = sockets, keyed
        self._turned_away, self._refused = turned_away, refused
        self._handshakes = Handshakes(keyed=keyed)
        self._callers = Callers()

    def take(self, route: Route | None, event: ConnectionEvent) -> None:
        """Take in what happened to a connection, to a dialled peer or (None) of one that dialled us."""
        if route is not None:
            self._of_dialled(route, event)
        elif (stranger := self._callers.heard(event)) is not None:
            self._turned_away(stranger.address, bound_side_error(stranger.how, keyed=self._keyed))

    def answered(self, route: Route, greeting: Greeting) -> None:
        """Take in what a dialled peer says when it is asked."""
        mechanism = greeting.answer()
        if mechanism is not None:
            self._handshakes.speaks(route, mechanism)
            self._sockets.stop_asking(route)

    def forget(self, route: Route) -> None:
        """Forget a peer that was hung up on."""
        self._handshakes.forget(route)

    def _of_dialled(self, route: Route, event: ConnectionEvent) -> None:
        error = self._handshakes.heard(route, event)
        if error is not None:
            self._refused(route, error)
        elif not self._handshakes.wants_to_ask(route):
            self._sockets.stop_asking(route)
        elif event.what is Connection.FAILED:
            self._sockets.ask(route)
