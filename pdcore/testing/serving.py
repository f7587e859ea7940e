"""A prefill worker of this process, and a decode worker of another that it serves."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pdcore.bootstrap import BootstrapServer
from pdcore.model import Deadline, KVPoll, RoomId
from pdcore.pairing.topology import Topology
from pdcore.prefill import KVSender, PrefillManager
from pdcore.selection.select import select
from pdcore.testing.ends import STILL
from pdcore.testing.far import commands as c
from pdcore.testing.far.pools import FAR_POOL_SEED, NEAR_POOL_SEED, make_config, make_pools
from pdcore.testing.far.process import FarProcess
from pdcore.testing.memory import digest, pattern
from pdcore.testing.target import Target

__all__ = ["ServingPair", "ended_as"]

SLOT = 3
"""The aux slot that every room uses, on both sides."""

TOKEN = 1_000_000
"""The aux field of a room is this plus the room."""

GLANCE = 0.005
"""Seconds between two polls, as a scheduler would."""


def ended_as(seen: Sequence[KVPoll]) -> KVPoll:
    """Return the state that a room ended in, after a look at how it got there."""
    *before, last = seen
    assert last.terminal, f"the room had not ended: {seen}"
    assert not any(state.terminal for state in before), f"a terminal state was left: {seen}"
    assert before == sorted(before), f"a state went down: {seen}"
    return last


class ServingPair:
    """A bootstrap service, a prefill manager here, and a decode manager in a far process."""

    def __init__(
        self,
        target: Target,
        model: str,
        far: FarProcess,
        aux: Literal["auto", "engine"] = "auto",
        staging: Literal["off", "always"] = "off",
    ) -> None:
        self.far = far
        self.patience = target.patience
        self._pools = make_pools(apart=True)
        for i, array in enumerate(self._pools.arrays):
            array.reshape(-1)[:] = pattern(NEAR_POOL_SEED + i, array.size)
        with contextlib.ExitStack() as stack:
            bootstrap = stack.enter_context(BootstrapServer())
            backend = select(target.name, target.options)
            config = make_config(model, aux, staging)
            self._prefill = stack.enter_context(
                PrefillManager(backend, self._pools, Topology(), bootstrap.address, config)
            )
            where = target.name, dict(target.options), bootstrap.address
            far.ask(c.StartDecode(*where, model, aux, staging))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Close both managers and the service."""
        with self._stack:
            if self.far.alive:
                self.far.ask(c.CloseDecode())

    def sender(self, room: int, num_pages: int, seconds: float | None = None) -> KVSender:
        """Open a room on the prefill side, with its aux row written."""
        assert self._pools.aux is not None
        self._pools.aux.set(SLOT, RoomId(room), {"token": TOKEN + room})
        sender = self._prefill.sender(RoomId(room), Deadline.after(seconds or self.patience))
        sender.init(num_pages, aux_index=SLOT)
        return sender

    def receive(self, room: int, pages: Sequence[int], seconds: float | None = None) -> None:
        """Open a room on the decode side, and ask for pages."""
        self.far.ask(c.ReceivePages(room, list(pages), SLOT, seconds or self.patience))

    def received(self, room: int) -> c.RoomEnd:
        """Wait for the end of a room on the decode side, until its pages may be reused there."""
        return self.far.ask(c.WatchRoom(room, SLOT, 2 * self.patience), Deadline.after(3 * self.patience))

    def ended(self, sender: KVSender) -> KVPoll:
        """Poll a room on the prefill side until it has ended, and return how."""
        deadline, glance = Deadline.after(2 * self.patience), threading.Event()
        seen = [sender.poll()]
        while not seen[-1].terminal and not deadline.expired:
            glance.wait(GLANCE)
            state = sender.poll()
            if state is not seen[-1]:
                seen.append(state)
        return ended_as(seen)

    def released(self, sender: KVSender) -> bool:
        """Wait until the pages of a room that has ended may be reused on the prefill side."""
        deadline, glance = Deadline.after(2 * self.patience), threading.Event()
        while not sender.release_safe() and not deadline.expired:
            glance.wait(GLANCE)
        return sender.release_safe()

    def sent(self, sender: KVSender) -> KVPoll:
        """Wait for the end of a room on the prefill side, and until its pages may be reused."""
        state = self.ended(sender)
        assert self.released(sender), "the pages were never released"
        return state

    def close_prefill(self) -> None:
        """Close the prefill manager, and with it its engine."""
        self._prefill.close()

    def deliver(self, room: int, here: Sequence[int], there: Sequence[int], chunk: int = 0) -> None:
        """Move pages from here to there in chunks of so many (0: at once), and require success."""
        self.receive(room, there)
        sender = self.sender(room, len(here))
        step = chunk or len(here)
        for start in range(0, len(here), step):
            sender.send(np.array(here[start : start + step], np.int64))
        assert self.sent(sender) is KVPoll.SUCCESS, str(sender.failure())
        self.require_success(room)
        sender.clear()

    def require_success(self, room: int) -> None:
        """Require that a room succeeds on the decode side, with its aux row."""
        end = self.received(room)
        assert ended_as([KVPoll(state) for state in end.seen]) is KVPoll.SUCCESS, end.reason
        assert end.safe
        assert end.token == TOKEN + room

    def require_failure(self, room: int, code: str) -> None:
        """Require that a room fails on the decode side, for this reason, and is released."""
        end = self.received(room)
        assert ended_as([KVPoll(state) for state in end.seen]) is KVPoll.FAILED
        assert end.code == code, end.reason
        assert end.safe, "the pages were never released"

    def require_arrived(self, copied: dict[int, int]) -> None:
        """Have the far process read its pools back: these pages arrived (there: here), no other changed."""
        got = self.far.ask(c.PoolDigests())
        assert [i for i, want in enumerate(self._expected(copied)) if got[i] != want] == [], (
            "wrong KV buffers"
        )

    def wait_for_bytes(self, copied: dict[int, int]) -> None:
        """Wait until more has arrived in the far pools than these pages."""
        deadline, before = Deadline.after(self.patience), self._expected(copied)
        while self.far.ask(c.PoolDigests()) == before:
            assert not deadline.expired, "no byte arrived"

    def _expected(self, copied: dict[int, int]) -> list[str]:
        expected = []
        for i, source in enumerate(self._pools.arrays):
            want = pattern(FAR_POOL_SEED + i, source.size).reshape(source.shape)
            want[list(copied)] = source[list(copied.values())]
            expected.append(digest(want))
        return expected

    def require_still(self, when: str) -> None:
        """Overwrite the far pools, and prove that no byte of them changes for a while."""
        self.far.ask(c.FillPools(FAR_POOL_SEED + 500))
        assert not self.far.ask(c.WatchPools(STILL / 2)), f"bytes landed after {when}"
