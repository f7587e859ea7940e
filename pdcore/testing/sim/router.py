"""Who asks for rooms: opens them on both sides in any order, gives some up, and uses their ids again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs
import numpy as np

from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.model import Role, RoomId
from pdcore.protocol import stimuli as s
from pdcore.protocol import words
from pdcore.protocol.groups import GroupKey
from pdcore.testing.sim.memory import ViolationError
from pdcore.testing.sim.node import SimulatedRank
from pdcore.testing.sim.requests import Request, Side
from pdcore.wire import RequestMetadata

if TYPE_CHECKING:
    from pdcore.testing.sim.world import World

__all__ = ["Router"]

DEADLINE = 6.0
SHORT_DEADLINE = 1.0
"""Of a scheduler in haste."""
AT_ONCE = 2.5
"""Seconds within which a side is told that another one ended, where no message is lost: an early word may be
put off, and a worker that may have lost the room is given a second."""
BACK = 0.5
"""Seconds within which pages come back on both sides once both have ended, where no message is lost: before
any reminder."""
STARVED = 0.5
"""Seconds for which decode waits for pages that it has not free."""
MOST_PAGES = 4
LONG_WAITS = 0.06
"""The share of rooms for which decode has no pages for long."""


class Router:
    """Keeps some requests under way until ``left`` is 0.

    There are few room ids, so that they come again: one that only some of its ranks met only in worlds with
    ``reuse`` of all, in which nobody promises who is told when (docs/INVARIANTS.md).
    """

    def __init__(self, world: World, chance: random.Random, rooms: int, at_once: int) -> None:
        self._world, self._chance = world, chance
        self.left, self.rooms = rooms, rooms
        self._ids = [RoomId(n) for n in range(at_once + at_once // 2 + 1)]
        self._newest_id = len(self._ids)
        self._serial = 0
        self.successes = self.failures = 0
        self.under_way = 0
        self.last_end = 0.0
        strict = not world.reuse
        self._calm, self._strict = strict and world.faults.none, strict and world.faults.loses_nothing
        self._heard = strict and attrs.evolve(world.faults, restart=0.0).loses_nothing
        for _ in range(at_once):
            self._world.clock.after(self._chance.random() * 0.01, self._begin)

    def ended(self, side: Side, failure: KVTransferError | None) -> None:
        """A room has ended: its scheduler clears it a moment later."""
        self._world.clock.after(0.002 * self._chance.random(), partial(self._clear, side))
        side.failed = failure is not None
        if self._calm and side.failed:
            raise ViolationError(
                f"{side.node.identity}: request {side.serial} failed where nothing goes wrong: {failure}"
            )
        if self._heard and failure is not None and failure.code is FailureCode.DEADLINE:
            self._check_not_in_vain(side)
        if self._strict and side.failed:
            self._world.clock.after(AT_ONCE, partial(self._check_told, side))

    def silent(self, side: Side) -> None:
        """No byte of a room can move any more: the other side's pages come back as well."""
        if side.node.sends and self._strict:
            self._world.clock.after(BACK, partial(self._check_silent, side))

    def dies(self, node: SimulatedRank) -> None:
        """A process has ended: what its scheduler had is gone."""
        for side in node.sides.values():
            if not side.cleared:
                side.cleared = True
                self._gone(side.request)

    def ask(self, prefills: Sequence[SimulatedRank], decodes: Sequence[SimulatedRank]) -> None:
        """Ask two groups for a room."""
        chance, world = self._chance, self._world
        self.under_way += 1
        self._serial += 1
        self.last_end = world.clock.now
        room = self._ids.pop(chance.randrange(len(self._ids)))
        aux = self._serial if world.rows else None
        misfit = chance.random() < world.faults.misfit
        request = Request(self._serial, room, chance.randint(1, MOST_PAGES), aux, misfit)
        both = [*prefills, *decodes]
        request.ranks = len(both)
        if chance.random() < world.faults.one_sided:
            both = list(chance.choice((prefills, decodes)))
        request.open = len(both)
        spread, key = chance.choice((0.0, 0.001, 0.02)), GroupKey(f"group-{prefills[0].group}", 0)
        for node in both:
            start = self._send if node.sends else self._receive
            place = node.role, node.group, node.rank
            world.clock.after(chance.random() * spread, partial(start, request, place, key))

    # --- inside ------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.left > 0:
            self.left -= 1
            self.ask(*self._world.choose())

    def _send(self, request: Request, place: tuple[Role, int, int], _: GroupKey) -> None:
        side = self._open(request, place, lambda g: s.OpenSend(request.room, g, self._deadline()))
        if side is None:
            return
        node, chance = side.node, self._chance
        for logical, page in enumerate(side.pages):
            node.memory.content[page] = {0: (request.serial, logical)}
        if request.aux is not None:
            node.rows[request.aux] = request.serial
        aux = request.aux
        node.feed(s.AnnouncePages(side.generation, len(side.pages), aux, 0))
        cuts = sorted(chance.sample(range(1, len(side.pages)), chance.randint(0, len(side.pages) - 1)))
        after = 0.0
        for first, last in zip([0, *cuts], [*cuts, len(side.pages)], strict=True):
            pages = np.array(side.pages[first:last], np.int64)
            waits = chance.random() < self._world.faults.unready
            after += chance.random() * 0.002
            self._world.clock.after(
                after, partial(self._supply, side, s.Supply(side.generation, pages, (), waits))
            )
        self._maybe_abort(side, "prefill")

    def _supply(self, side: Side, supply: s.Supply) -> None:
        if not side.cleared:
            side.node.feed(supply)

    def _receive(self, request: Request, place: tuple[Role, int, int], key: GroupKey) -> None:
        side = self._open(request, place, lambda g: s.OpenReceive(request.room, g, self._deadline(), key))
        if side is None:
            return
        node = side.node
        node.rows.pop(request.aux or 0, None)
        pages = side.pages[: len(side.pages) - request.misfit]
        wanted = RequestMetadata(
            request.room, side.generation, np.array(pages, np.int64), request.aux, (), 0, 0.0
        )
        node.feed(s.Choose(side.generation, key))
        if not side.pages:
            starved = s.GiveUp(side.generation, words.aborted("decode", request.room))
            self._world.clock.after(STARVED, partial(node.feed, starved))
            return
        self._maybe_abort(side, "decode")
        after = self._chance.choice((0.0, 0.0, 0.001, 0.01, 0.3)) * self._chance.random()
        if self._chance.random() < LONG_WAITS:
            after += 1.8 * AT_ONCE
        self._world.clock.after(after, partial(self._place, side, wanted))

    def _place(self, side: Side, wanted: RequestMetadata) -> None:
        if not side.cleared:
            side.node.feed(s.Place(side.generation, wanted))

    def _open(self, request: Request, place: tuple[Role, int, int], stimulus: object) -> Side | None:
        node = self._world.nodes[place]
        generation = node.generation()
        pages = node.memory.take(request.pages, request.serial)
        if node.closing or (pages is None and node.sends):
            if pages:
                node.memory.release(pages, request.serial)
            self._gone(request)
            return None
        side = Side(node, request, generation, pages or [], self._world.clock.now)
        node.sides[generation] = side
        request.sides.append(side)
        try:
            node.feed(stimulus(generation))  # type: ignore[operator]
        except RoomError as error:
            raise ViolationError(f"{node.identity}: {error}") from error
        side.room = node.machine.room(generation)
        for other in request.sides if self._strict else ():
            if other.failed and self._are_beside(side, other):
                self._world.clock.after(AT_ONCE, partial(self._check_told, other))
        return side

    def _maybe_abort(self, side: Side, who: str) -> None:
        if self._chance.random() < self._world.faults.abort:
            failure = words.aborted(who, RoomId(side.serial))
            after = self._chance.choice((0.0, 0.002, 0.05, 0.5)) * self._chance.random()
            self._world.clock.after(after, partial(side.node.feed, s.GiveUp(side.generation, failure)))

    def _clear(self, side: Side) -> None:
        if side.node.alive and not side.cleared:
            side.cleared = True
            if side.failed:
                self.failures += 1
            else:
                self.successes += 1
            side.node.feed(s.Clear(side.generation))
            self._gone(side.request)

    def _gone(self, request: Request) -> None:
        request.open -= 1
        if not request.open and not request.over:
            request.over = True
            self.under_way -= 1
            self.last_end = self._world.clock.now
            self._ids.append(request.room if self._may_come_again(request) else self._fresh())
            for side in request.sides:
                side.room = None
            self._world.clock.after(0.001 * self._chance.random(), self._begin)

    def _may_come_again(self, request: Request) -> bool:
        """Whether all ranks of a request met in its room, or its id is used again whatever comes of it."""
        if self._world.reuse:
            return True
        sides = [side for side in request.sides if side.node.sends]
        met = [other.generation == side.heard(other) for side in sides for other in self._across(side)]
        return len(request.sides) == request.ranks and all(met)

    def _fresh(self) -> RoomId:
        self._newest_id += 1
        return RoomId(self._newest_id)

    def _are_beside(self, one: Side, other: Side) -> bool:
        """Whether two sides of a request hear of each other."""
        part = self._world.shape.mapping.part
        return part(one.node.rank) == part(other.node.rank)

    def _beside(self, side: Side) -> list[Side]:
        return [other for other in side.request.sides if self._are_beside(side, other)]

    def _across(self, side: Side) -> list[Side]:
        return [other for other in self._beside(side) if other.node.sends is not side.node.sends]

    def _check_told(self, ended: Side) -> None:
        """Who waits for a room that has ended elsewhere was told, if it had it open for long enough."""
        now = self._world.clock.now
        for side in self._across(ended):
            if side.node.alive and not side.ended and now - side.opened_at >= AT_ONCE - 1e-9:
                raise ViolationError(
                    f"{side.node.identity}: request {side.serial} has ended elsewhere, and nobody told it "
                    "(invariant 19)"
                )

    def _check_not_in_vain(self, late: Side) -> None:
        """Nobody waits until its deadline for a room that has ended elsewhere, if the two know each other,
        whatever died before."""
        now, here = self._world.clock.now, late.node
        for side in self._across(late):
            there = side.node
            paired = here.paired_at.get(there.identity), there.paired_at.get(here.identity)
            known_at = max((now if at is None else at) for at in paired)
            if side.failed and there.alive and now - max(known_at, side.ended_at, late.opened_at) > AT_ONCE:
                raise ViolationError(
                    f"{here.identity}: request {late.serial} waits for its deadline, and {there.identity}, "
                    "which has ended it, does not tell (invariant 19)"
                )

    def _check_silent(self, silent: Side) -> None:
        sides = self._beside(silent)
        prefill = [side for side in sides if side.node.sends]
        if any(not side.silent or side.silent_at > silent.silent_at for side in prefill):
            return  # whoever falls silent last is looked at then
        for side in sides:
            if side.node.alive and side.ended and not side.silent:
                due_in = side.ended_at + BACK - self._world.clock.now
                if due_in > 1e-9:  # its own word that it has ended is on its way yet
                    self._world.clock.after(due_in, partial(self._check_silent, silent))
                    continue
                raise ViolationError(
                    f"{side.node.identity}: nothing of request {side.serial} moves, but its pages stay "
                    "out of use (invariant 4)"
                )

    def _deadline(self) -> float:
        hasty = self._chance.random() < self._world.faults.hasty
        return self._world.clock.now + (SHORT_DEADLINE if hasty else DEADLINE)
