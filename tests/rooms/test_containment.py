"""What an engine calls raises nothing of ours; and a room ends with what goes wrong with it."""

from __future__ import annotations

import logging

import pytest
from pair import Pair, paired, soon

from pdcore import FailureCode, KVPoll, PlanError, RoomId
from pdcore.errors import ArgumentError, ConfigError, ConfigProblem, one_line
from pdcore.rooms.containment import contained, room_fails


def test_a_call_that_raises_returns_something_else_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @contained(lambda: [0])
    def divided(by: int) -> list[int]:
        """Return a quotient."""
        return [6 // by]

    assert divided(2) == [3]
    assert divided.__doc__ == "Return a quotient."
    assert [divided(0), divided(by=0)] == [[0], [0]]
    (told,) = caplog.records
    assert "divided failed; the engine goes on without it" in told.getMessage()
    assert told.exc_info
    with pytest.raises(KeyboardInterrupt):
        contained(lambda: None)(interrupted)()


def interrupted() -> None:
    raise KeyboardInterrupt


def test_what_is_refused_ends_the_room_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        with room_fails(receiver):
            raise PlanError("no page is left", "0 pages", "use fewer")
        failure = receiver.failure()
        assert failure is not None
        assert (failure.code, failure.happened) == (FailureCode.PLAN, "no page is left")
        assert sender.wait(soon()) is KVPoll.FAILED
    assert not [r for r in caplog.records if r.levelno > logging.WARNING or r.exc_info]


def test_a_defect_ends_the_room_on_both_sides_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        with room_fails(sender):
            raise LookupError("a defect")
        failure = sender.failure()
        assert failure is not None
        assert failure.code is FailureCode.ENGINE
        assert "LookupError('a defect')" in failure.there_is
        assert receiver.wait(soon()) is KVPoll.FAILED
    assert "a defect ended room 1" in caplog.text


def test_a_room_that_has_ended_keeps_its_end() -> None:
    with paired() as pair:
        pair.move(1, [1], [2])
        sender, receiver = pair.open(2)
        receiver.abort()
        with room_fails(receiver):
            raise PlanError("too late", "-", "-")
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.ABORTED
        sender.wait(soon())


def test_a_room_that_was_never_opened_stays_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    def stillborn(pair: Pair) -> str:
        second = pair.prefill.sender(RoomId(1), may_raise=False)
        for error in (PlanError("too late", "-", "-"), BufferError("a defect")):
            with room_fails(second):
                raise error
        return str(second.failure())

    with paired() as pair:
        first = pair.prefill.sender(RoomId(1))
        assert "room 1 is open" in stillborn(pair)
        assert first.poll() is KVPoll.BOOTSTRAPPING
        first.abort()
    assert caplog.text.count("a defect ended room 1") == 1


def test_errors_as_one_line() -> None:
    assert one_line(ValueError("a\nb")) == "ValueError('a\\nb')"
    error = ArgumentError("it  was\trefused", "x", "y")
    assert one_line(error) == "it was refused; there is: x; to do: y"
    wrong = ConfigError([ConfigProblem("a", "here", "bad"), ConfigProblem("b", "here", "bad")])
    assert "\n" not in one_line(wrong)
