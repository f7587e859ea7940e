"""Managers of both roles with a faulty engine and a faulty control channel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs

from pdcore.config.records import Config
from pdcore.contract.engine import TransferEngine
from pdcore.decode import DecodeManager
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, Incarnation, Role
from pdcore.pairing.topology import Topology
from pdcore.prefill import PrefillManager
from pdcore.selection.select import Backend
from pdcore.testing.faults.channel import FaultyChannel
from pdcore.testing.faults.engine import FaultyEngine
from pdcore.testing.faults.schedule import Schedule
from pdcore.wire import Channel

__all__ = ["FaultyBackend", "FaultyDecode", "FaultyPrefill"]


@attrs.frozen
class FaultyBackend(Backend):
    """A selected backend whose engines misbehave."""

    schedule: Schedule = attrs.field(kw_only=True, eq=False)

    @classmethod
    def around(cls, backend: Backend, schedule: Schedule) -> FaultyBackend:
        """Return the same backend with faults."""
        return cls(
            backend.name,
            backend.distribution,
            backend.spec,
            backend.variant,
            backend.options,
            backend.choice,
            backend._plugin,
            schedule=schedule,
        )

    def start_engine(
        self,
        *,
        role: Role,
        incarnation: Incarnation,
        host: str,
        deadline: Deadline,
        require_transport: str | None = None,
    ) -> TransferEngine:
        real = Backend.start_engine(
            self,
            role=role,
            incarnation=incarnation,
            host=host,
            deadline=deadline,
            require_transport=require_transport,
        )
        return FaultyEngine(real, self.schedule, role.value)


class FaultyPrefill(PrefillManager):
    """A prefill manager among faults."""

    def __init__(
        self, schedule: Schedule, backend: Backend, pools: Pools, bootstrap: str, config: Config
    ) -> None:
        self._schedule = schedule
        super().__init__(FaultyBackend.around(backend, schedule), pools, Topology(), bootstrap, config)

    def _open_channel(self, make: Callable[..., Channel] = FaultyChannel) -> Channel:
        return super()._open_channel(partial(make, self._schedule))


class FaultyDecode(DecodeManager):
    """A decode manager among faults."""

    def __init__(self, schedule: Schedule, backend: Backend, pools: Pools, config: Config) -> None:
        self._schedule = schedule
        super().__init__(FaultyBackend.around(backend, schedule), pools, Topology(), config)

    def _open_channel(self, make: Callable[..., Channel] = FaultyChannel) -> Channel:
        return super()._open_channel(partial(make, self._schedule))
