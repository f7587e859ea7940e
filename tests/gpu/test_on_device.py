"""Two processes, pools of torch tensors: in host memory here, on a GPU where there is one (docs/GPU.md).

PDCORE_TEST_DEVICE names torch's device (cpu), PDCORE_TEST_BACKENDS the backends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import attrs
import pytest

from gpu import messages as m
from pdcore import BootstrapServer, Deadline
from pdcore.children import Child, Reply, decode_reply

DEVICE = os.environ.get("PDCORE_TEST_DEVICE", "cpu")
BACKENDS = os.environ.get("PDCORE_TEST_BACKENDS", "nixl mooncake_tcp").split()
THOROUGH = BACKENDS if DEVICE != "cpu" else BACKENDS[:1]
"""In host memory tests/plugins and tests/decode do the rest."""
TESTS = Path(__file__).parents[1]
START = 90.0
SOURCES, TARGETS = [3, 4, 5, 40, 9], [20, 21, 22, 7, 60]
MANY = 24
"""Rooms that are under way when a worker is killed."""

Rank = Child[m.Command, Reply]


def worker(spec: m.WorkerSpec) -> Rank:
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return Rank(f"the {spec.role} rank", "gpu.worker", spec, decode_reply, environment=environment)


@attrs.frozen
class Ranks:
    """A prefill and a decode rank, and how many rooms they have had."""

    prefill: Rank
    decode: Rank
    bootstrap: str
    rooms: list[int]

    def room(self) -> int:
        self.rooms.append(len(self.rooms) + 1)
        return self.rooms[-1]

    def open(self, *, ready: bool = False, sources: list[int] = SOURCES, targets: list[int] = TARGETS) -> int:
        room = self.room()
        self.decode.ask(m.Receive(room, targets, self.bootstrap))
        self.prefill.ask(m.Send(room, sources, 1000 + room, ready))
        return room

    def finish(self, room: int) -> None:
        """Both sides end in SUCCESS, and decode's first kernels after that see what was sent."""
        ended = self.decode.ask(m.Wait(room))
        assert ended == m.Ended("SUCCESS", "", True, ""), ended
        ended = self.prefill.ask(m.Wait(room))
        assert ended == m.Ended("SUCCESS", "", True, ""), ended

    def clear(self, room: int) -> None:
        self.prefill.ask(m.Clear(room))
        self.decode.ask(m.Clear(room))


def specs(backend: str, dtype: m.Dtype, bootstrap: str, verify: Literal["off", "all"]) -> list[m.WorkerSpec]:
    return [m.WorkerSpec(role, backend, DEVICE, dtype, bootstrap, verify) for role in ("prefill", "decode")]


@pytest.fixture
def bootstrap() -> Iterator[str]:
    with BootstrapServer() as server:
        yield server.address


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as open_:
        yield open_


def start(
    stack: ExitStack,
    backend: str,
    bootstrap: str,
    dtype: m.Dtype = "bfloat16",
    verify: Literal["off", "all"] = "off",
) -> Ranks:
    """Start both ranks at once: importing torch takes most of it."""
    both = [stack.enter_context(worker(spec)) for spec in specs(backend, dtype, bootstrap, verify)]
    for rank in both:
        rank.tell(m.Started())
    for rank in both:
        print(rank.name, rank.answer(m.Started(), Deadline.after(START)))
    prefill, decode = both
    return Ranks(prefill, decode, bootstrap, [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_arrive_and_are_not_read_before_their_kernel_has_ended(
    stack: ExitStack, backend: str, bootstrap: str
) -> None:
    ranks = start(stack, backend, bootstrap)
    prefill, decode = ranks.prefill, ranks.decode

    prefill.ask(m.Fill(1, SOURCES))
    room = ranks.open()
    ranks.finish(room)
    assert decode.ask(m.Look(1, SOURCES, TARGETS)) == m.Seen(0, 0)
    assert decode.ask(m.Token(room)) == 1000 + room
    ranks.clear(room)

    # Without ready= a room is sent as it is: what the kernel writes later is missing.
    prefill.ask(m.FillLater(2, SOURCES, "gate"))
    room = ranks.open()
    ranks.finish(room)
    assert decode.ask(m.Look(1, SOURCES, TARGETS)) == m.Seen(0, 0)
    assert decode.ask(m.Look(2, SOURCES, TARGETS)) == m.Seen(len(TARGETS), 0)
    prefill.ask(m.OpenGate())
    ranks.clear(room)

    # With it the room waits, and a later one overtakes it.
    prefill.ask(m.FillLater(3, SOURCES, "gate"))
    held = ranks.open(ready=True)
    other = ranks.open(sources=[0], targets=[1])
    ranks.finish(other)
    assert decode.ask(m.State(held)) not in ("SUCCESS", "FAILED")
    assert decode.ask(m.Look(1, SOURCES, TARGETS)).wrong == 0
    prefill.ask(m.OpenGate())
    ranks.finish(held)
    assert decode.ask(m.Look(3, SOURCES, TARGETS)).wrong == 0
    ranks.clear(held)
    ranks.clear(other)

    # A long kernel, and nobody who waits for it.
    prefill.ask(m.FillLater(4, SOURCES, "kernel"))
    room = ranks.open(ready=True)
    ranks.finish(room)
    assert decode.ask(m.Look(4, SOURCES, TARGETS)).wrong == 0
    ranks.clear(room)


@pytest.mark.parametrize("backend", THOROUGH)
def test_fp8_arrives_and_is_verified_where_it_lies(stack: ExitStack, backend: str, bootstrap: str) -> None:
    ranks = start(stack, backend, bootstrap, "float8_e4m3fn", "all")
    for seed in (1, 2):
        ranks.prefill.ask(m.Fill(seed, SOURCES))
        room = ranks.open()
        ranks.finish(room)
        assert ranks.decode.ask(m.Look(seed, SOURCES, TARGETS)) == m.Seen(0, 0)
        assert ranks.decode.ask(m.Token(room)) == 1000 + room
        ranks.clear(room)


@pytest.mark.parametrize("backend", THOROUGH)
@pytest.mark.parametrize("victim", ["decode", "prefill"])
def test_a_killed_rank_fails_its_rooms_and_the_other_goes_on(
    stack: ExitStack, backend: str, bootstrap: str, victim: Literal["prefill", "decode"]
) -> None:
    ranks = start(stack, backend, bootstrap)
    ranks.prefill.ask(m.FillLater(1, [*SOURCES, *range(50, 50 + MANY)], "gate"))
    rooms = [ranks.open(sources=[50 + n], targets=[50 + n], ready=n % 2 == 0) for n in range(MANY)]
    dead, alive = (ranks.decode, ranks.prefill) if victim == "decode" else (ranks.prefill, ranks.decode)
    dead.crash()
    if victim == "decode":
        alive.ask(m.OpenGate())
    ended = [alive.ask(m.Wait(room)) for room in rooms]
    assert {one.status for one in ended} <= {"SUCCESS", "FAILED"}
    assert all(one.failure for one in ended if one.status == "FAILED")
    assert any(one.status == "FAILED" for one in ended), "nothing was under way"
    assert all(one.safe or one.because for one in ended)
    print(f"{victim} killed:", *sorted({f"{e.status} safe={e.safe} {e.because}" for e in ended}), sep="\n  ")
    dead.kill()

    # A new one of its kind works with the rank that lives.
    spec = specs(backend, "bfloat16", bootstrap, "off")[victim == "decode"]
    new = stack.enter_context(worker(spec))
    new.ask(m.Started(), Deadline.after(START))
    prefill, decode = (alive, new) if victim == "decode" else (new, alive)
    again = Ranks(prefill, decode, bootstrap, list(range(1, 101)))
    prefill.ask(m.Fill(5, SOURCES))
    room = again.open()
    again.finish(room)
    assert decode.ask(m.Look(5, SOURCES, TARGETS)).wrong == 0
