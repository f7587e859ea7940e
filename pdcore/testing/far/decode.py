"""The far process as a decode worker: a manager, its pools, and the rooms it receives."""

from __future__ import annotations

import threading

from pdcore.decode import DecodeManager, KVReceiver
from pdcore.model import Deadline, KVPoll, RoomId
from pdcore.pairing.topology import Topology
from pdcore.selection.select import select
from pdcore.testing.far import commands as c
from pdcore.testing.far.pools import FAR_POOL_SEED, make_config, make_pools
from pdcore.testing.memory import digest, pattern

__all__ = ["FarDecode"]

GLANCE = 0.005
"""Seconds between two polls, as a scheduler would."""

LOOK = 0.01
"""Seconds between two looks at memory that is watched."""


class FarDecode:
    """One decode manager."""

    def __init__(self, command: c.StartDecode) -> None:
        backend = select(command.backend, command.options)
        self._bootstrap = command.bootstrap
        self._pools = make_pools(apart=False)
        self._fill(FAR_POOL_SEED)
        self._manager = DecodeManager(
            backend, self._pools, Topology(), make_config(command.model, command.aux, command.staging)
        )
        self._receivers: dict[int, KVReceiver] = {}

    def execute(self, command: c.DecodeCommand) -> object:
        """Execute a command, and return its answer."""
        match command:
            case c.ReceivePages():
                self._receive(command)
            case c.WatchRoom():
                return self._watch_room(command)
            case c.AbortReceived():
                self._receivers[command.room].abort()
            case c.ClearReceived():
                self._receivers.pop(command.room).clear()
            case c.FillPools():
                self._fill(command.seed)
            case c.PoolDigests():
                return self._digests()
            case c.WatchPools():
                return self._changes(Deadline.after(command.seconds))
            case c.CloseDecode():
                self._manager.close()
        return None

    def _fill(self, seed: int) -> None:
        """Fill KV buffer ``i`` from ``seed + i``."""
        for i, array in enumerate(self._pools.arrays):
            array.reshape(-1)[:] = pattern(seed + i, array.size)

    def _digests(self) -> list[str]:
        """Return one digest per KV buffer."""
        return [digest(array) for array in self._pools.arrays]

    def _receive(self, command: c.ReceivePages) -> None:
        """Open a room and ask for its pages."""
        deadline = Deadline.after(command.seconds)
        receiver = self._manager.receiver(self._bootstrap, RoomId(command.room), deadline)
        self._receivers[command.room] = receiver
        receiver.init()
        receiver.send_metadata(command.pages, aux_index=command.slot)

    def _watch_room(self, command: c.WatchRoom) -> c.RoomEnd:
        """Poll a room, as a scheduler would, until it has ended and its pages may be reused."""
        receiver = self._receivers[command.room]
        deadline, glance = Deadline.after(command.seconds), threading.Event()
        seen = [receiver.poll()]
        while not (seen[-1].terminal and receiver.release_safe()) and not deadline.expired:
            glance.wait(GLANCE)
            state = receiver.poll()
            if state is not seen[-1]:
                seen.append(state)
        failure, token = receiver.failure(), -1
        if seen[-1] is KVPoll.SUCCESS and self._pools.aux is not None:
            token = int(self._pools.aux.get(command.slot, RoomId(command.room))["token"])
        return c.RoomEnd(
            seen=[int(state) for state in seen],
            safe=receiver.release_safe(),
            code=failure.code.value if failure else "",
            reason=str(failure or ""),
            token=token,
        )

    def _changes(self, deadline: Deadline) -> bool:
        """Return whether any byte of the KV buffers changes before the deadline."""
        before, look_again = self._digests(), threading.Event()  # never set: what must not come wakes nobody
        while not deadline.expired:
            if self._digests() != before:
                return True
            look_again.wait(LOOK)
        return False
