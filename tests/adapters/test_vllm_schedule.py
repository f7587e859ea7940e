"""What the vLLM adapter's scheduler side decides. Pure values; no vLLM is needed."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from pdcore_vllm.scheduler import REMEMBERED, Key, Report, Room, Schedule, Work

SOURCE = {"do_remote_prefill": True, "pdcore_bootstrap": "10.0.0.1:8998", "pdcore_room": 7}
KEY = ("r", 7)


def asked() -> dict[str, Any]:
    return dict(SOURCE)


def loading(schedule: Schedule, request: str = "r") -> Room:
    """Have a request of 100 tokens begin, the first 32 of which are here, in blocks of 32."""
    schedule.allocated(request, asked(), [4, 5, 6, 7], 100, 68)
    (room,) = schedule.work(idle=True).rooms
    return room


class Blocks:
    """A block pool that counts references."""

    def __init__(self) -> None:
        self.blocks: Sequence[int] = range(64)
        self.references = dict.fromkeys(range(64), 0)
        self.freed: list[int] = []

    def touch(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.references[block] += 1

    def free_blocks(self, ordered_blocks: Iterable[int]) -> None:
        for block in ordered_blocks:
            self.references[block] -= 1
            self.freed.append(block)


def test_prefill_draws_a_room_and_keeps_the_blocks_of_the_prompt() -> None:
    schedule = Schedule(32, 2, loads=False)
    schedule.bootstrap = "10.0.0.1:8998"
    schedule.pool = pool = Blocks()
    told = schedule.finished("r", {"do_remote_decode": True}, [4, 5, 6, 7], 65, complete=True)
    assert [pool.references[block] for block in (4, 5, 6, 7)] == [1, 1, 1, 0]
    assert told is not None
    assert told["do_remote_prefill"]
    assert not told["do_remote_decode"]
    assert told["pdcore_bootstrap"] == "10.0.0.1:8998"
    assert schedule.work(idle=True) == Work([Room("r", told["pdcore_room"], (4, 5, 6))], idle=True)
    assert schedule.work(idle=False) == Work()
    safe = Counter([("r", told["pdcore_room"])])
    schedule.reported([], Report(safe=safe))
    assert not pool.freed, "the other worker still sends"
    schedule.reported([], Report(safe=safe))
    assert pool.freed == [6, 5, 4], "the last one is evicted first"


def test_prefill_keeps_nothing_of_a_request_that_was_aborted_or_is_not_for_decode() -> None:
    schedule = Schedule(32, 2, loads=False)
    assert schedule.finished("a", {"do_remote_decode": True}, [4], 5, complete=False) is None
    assert schedule.finished("b", None, [4], 5, complete=True) is None
    assert schedule.finished("c", {"do_remote_decode": True}, [], 5, complete=True) is None
    assert schedule.work(idle=True) == Work(idle=True)


def test_decode_loads_what_it_lacks_behind_whole_blocks_that_it_has() -> None:
    schedule, params = Schedule(32, 2, loads=True), asked()
    assert schedule.matched("r", params, 68) == 68
    schedule.allocated("r", params, [4, 5, 6, 7], 100, 68)
    assert schedule.work(idle=True).rooms == [Room("r", 7, (5, 6, 7), "10.0.0.1:8998", 32)]
    assert not params["do_remote_prefill"]
    assert schedule.matched("r", params, 100) == 0, "after a preemption it is computed here"
    schedule.allocated("r", params, [4, 5, 6, 7], 100, 0)
    assert schedule.work(idle=True) == Work(idle=True)


def test_a_request_without_a_prefill_is_computed_here() -> None:
    schedule = Schedule(32, 2, loads=True)
    assert schedule.matched("a", None, 100) == 0
    assert schedule.matched("b", {}, 100) == 0
    assert schedule.matched("c", {"do_remote_prefill": True, "remote_engine_id": "x"}, 100) == 0
    assert schedule.matched("d", {**SOURCE, "pdcore_room": "7"}, 100) == 0
    assert schedule.matched("e", {**SOURCE, "pdcore_room": True}, 100) == 0
    assert schedule.matched("f", asked(), 0) == 0


def test_a_request_that_vllm_asks_about_in_every_step_is_refused_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    schedule, params = Schedule(32, 2, loads=False), asked()
    assert [schedule.matched("r", params, 100) for _ in range(3)] == [0, 0, 0]
    assert caplog.text.count("request r is computed here: this engine is a prefill") == 1


def test_decode_declines_what_it_has_all_of() -> None:
    schedule = Schedule(32, 2, loads=True)
    schedule.allocated("r", asked(), [4, 5], 64, 0)
    assert schedule.work(idle=False).declines == [
        (Room("r", 7, (), "10.0.0.1:8998"), "decode has all of its tokens")
    ]


def test_decode_declines_what_ended_before_it_began() -> None:
    schedule, params = Schedule(32, 2, loads=True), asked()
    assert schedule.finished("r", params, [], 64, complete=False) is None
    ((room, reason),) = schedule.work(idle=False).declines
    assert room == Room("r", 7, (), "10.0.0.1:8998")
    assert "before decode began" in reason
    assert not params["do_remote_prefill"]


def test_a_request_that_ends_while_it_loads_is_aborted_until_the_workers_say_so() -> None:
    schedule = Schedule(32, 2, loads=True)
    loading(schedule)
    assert schedule.finished("r", asked(), [4, 5, 6, 7], 100, complete=False) is None
    assert schedule.work(idle=True).aborts == [KEY]
    schedule.reported(["r"], Report())
    schedule.finished("r", None, [], 100, complete=False)
    assert schedule.work(idle=True).aborts == []


def test_a_second_request_for_a_room_waits_for_the_first_and_then_computes() -> None:
    schedule = Schedule(32, 2, loads=True)
    loading(schedule, "first")
    assert schedule.matched("second", asked(), 100) is None
    schedule.reported(["first"], Report())
    assert schedule.matched("second", asked(), 100) == 0
    schedule.allocated("second", asked(), [8, 9, 10, 11], 100, 0)
    schedule.finished("second", asked(), [], 100, complete=False)
    assert schedule.work(idle=True) == Work(idle=True), "prefill hears no more of the room"


def test_what_was_used_is_forgotten_some_day() -> None:
    schedule = Schedule(32, 2, loads=True)
    for room in range(REMEMBERED + 5):
        schedule.allocated("r", {**SOURCE, "pdcore_room": room}, [4], 32, 0)
    assert schedule.matched("x", {**SOURCE, "pdcore_room": REMEMBERED}, 9) == 0
    assert schedule.matched("x", {**SOURCE, "pdcore_room": 0}, 9) == 9


def test_why_a_request_failed_stands_in_its_answer() -> None:
    schedule = Schedule(32, 2, loads=True)
    loading(schedule)
    schedule.reported(["r"], Report(failures={"r": "prefill was lost"}))
    assert schedule.finished("r", None, [4], 100, complete=True) == {"pdcore_failure": "prefill was lost"}
    assert schedule.finished("r", None, [4], 100, complete=True) is None


def test_unsafe_blocks_are_held_until_each_worker_has_called_them_safe() -> None:
    schedule, pool = Schedule(32, 2, loads=True), Blocks()
    schedule.pool = pool
    loading(schedule)
    one, two = (Report(unsafe=Counter([KEY])) for _ in range(2))
    schedule.reported(["r"], one.merged(two))
    assert [pool.references[block] for block in (4, 5, 6, 7)] == [0, 1, 1, 1]
    schedule.reported([], Report(safe=Counter([KEY])))
    assert not pool.freed
    schedule.reported([], Report(safe=Counter([KEY])))
    assert pool.freed == [7, 6, 5], "the last one is evicted first"


def test_an_engine_without_work_looks_again_while_blocks_should_soon_be_safe() -> None:
    schedule = Schedule(32, 2, loads=True)
    schedule.pool = Blocks()
    loading(schedule)
    watched = [schedule.watching]
    for report in (Report(unsafe=Counter([KEY])), Report(safe=Counter([KEY]))):
        schedule.reported([], report)
        watched.append(schedule.watching)
    assert watched == [False, True, False]


def test_a_worker_may_call_blocks_safe_before_another_calls_them_unsafe() -> None:
    schedule, pool = Schedule(32, 2, loads=True), Blocks()
    schedule.pool = pool
    loading(schedule)
    schedule.reported([], Report(unsafe=Counter([KEY])))
    schedule.reported(["r"], Report(safe=Counter([KEY])).merged(Report(unsafe=Counter([KEY]))))
    assert pool.references[5] == 1
    schedule.reported([], Report(safe=Counter([KEY])))
    assert pool.references[5] == 0


def prefilled(schedule: Schedule, request: str, blocks: list[int]) -> Key:
    """Have prefill end with a request of 20 tokens."""
    told = schedule.finished(request, {"do_remote_decode": True}, blocks, 20, complete=True)
    assert told is not None
    return request, told["pdcore_room"]


def test_prefill_holds_once_what_is_shared_by_reference_alone() -> None:
    schedule = Schedule(32, 1, loads=False)
    schedule.pool = pool = Blocks()
    first, _ = prefilled(schedule, "a", [4]), prefilled(schedule, "b", [4])
    assert pool.references[4] == 2
    schedule.reported([], Report(safe=Counter([first])))
    assert pool.references[4] == 1


def test_the_name_of_a_request_may_come_again_while_its_room_is_open() -> None:
    schedule = Schedule(32, 1, loads=False)
    schedule.pool = pool = Blocks()
    first, second = prefilled(schedule, "r", [4]), prefilled(schedule, "r", [5])
    assert (pool.references[4], pool.references[5]) == (1, 1)
    schedule.reported([], Report(safe=Counter([second])))
    assert (pool.references[4], pool.references[5]) == (1, 0)
    schedule.reported([], Report(safe=Counter([first])))
    assert not any(pool.references.values())


def test_blocks_that_cannot_be_held_are_not_sent() -> None:
    schedule = Schedule(32, 1, loads=False)
    with pytest.raises(AttributeError):  # there is no pool yet
        schedule.finished("r", {"do_remote_decode": True}, [4], 20, complete=True)
    assert schedule.work(idle=True) == Work(idle=True)


def test_prefill_loads_nothing_whatever_it_is_handed(caplog: pytest.LogCaptureFixture) -> None:
    schedule, params = Schedule(32, 1, loads=False), asked()
    assert schedule.matched("r", params, 100) == 0
    schedule.allocated("r", params, [4, 5, 6, 7], 100, 0)
    schedule.finished("r", params, [4, 5, 6, 7], 100, complete=True)
    assert schedule.work(idle=True) == Work(idle=True)
    assert "request r is computed here: this engine is a prefill" in caplog.text


def test_why_a_load_failed_is_forgotten_where_nobody_asks_any_more() -> None:
    schedule = Schedule(32, 1, loads=True)
    loading(schedule)
    schedule.finished(
        "r", None, [], 100, complete=False
    )  # so vLLM does, before it hands on what workers said
    schedule.reported(["r"], Report(failures={"r": "prefill was lost", "unknown": "so was this"}))
    for request in ("r", "unknown"):
        assert schedule.finished(request, None, [], 100, complete=True) is None


def test_what_travels_between_processes_can() -> None:
    work = Work([Room("a", 1, (2,))], [(Room("b", 3, (), "h:1"), "why")], [("c", 4)], idle=True)
    report = Report(Counter([("a", 1)]), Counter([("b", 2)]), {"c": "why"})
    assert pickle.loads(pickle.dumps((work, report))) == (work, report)
    assert not Report()
    assert report
