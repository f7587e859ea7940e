"""The one harness of all child processes: what a parent sees of a child, whatever the child does."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from pathlib import Path

import pytest
from obliging_child import Command, Exit, Print, Settings, Silence, Spawn, Sum

from pdcore.children import Child, ChildError, Fatal, Gone, Reply, decode_reply, heard
from pdcore.model import Deadline

HERE = str(Path(__file__).parent)
SHORT = 0.2


def child(settings: Settings | None = None, *, session: bool = False) -> Child[Command, Reply]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}
    given = settings or Settings()
    return Child("the child", "obliging_child", given, decode_reply, session=session, environment=environment)


def soon() -> Deadline:
    return Deadline.after(60)


def test_questions_are_answered_with_what_they_say() -> None:
    with child() as obliging:
        assert obliging.ask(Sum([1, 2, 3])) == 6
        obliging.tell(Sum([5]))
        assert obliging.answer(Sum([5]), soon()) == 5


def test_a_question_that_fails_is_refused_with_its_traceback_and_the_child_goes_on() -> None:
    with child() as obliging:
        with pytest.raises(ChildError, match="the child did not answer Sum") as caught:
            obliging.ask(Sum([]))
        assert "ZeroDivisionError" in caught.value.there_is
        assert obliging.ask(Sum([4])) == 4


def test_what_a_child_cannot_go_on_for_is_told_in_its_own_words() -> None:
    with child(Settings(fails=True)) as obliging:
        event = obliging.read(soon())
        assert isinstance(event, Fatal)
        assert event.error.startswith("it cannot start\n  there is: the test says so")
        assert obliging.read(soon()) == Gone(obliging.pid, 1)
        assert obliging.read(soon()) is None


def test_a_child_that_says_nothing_in_time_is_described(capfd: pytest.CaptureFixture[str]) -> None:
    with child() as obliging:
        obliging.ask(Print("about to fall silent"))
        with pytest.raises(ChildError, match="the child did not answer Silence") as caught:
            obliging.ask(Silence(), Deadline.after(SHORT))
        assert caught.value.there_is.splitlines() == [
            "nothing came within 0.2 s; it runs; it printed last:",
            "about to fall silent",
        ]
        obliging.pause()
        with pytest.raises(ChildError, match=r"within 0\.2 s; it is paused"):
            obliging.ask(Sum([1]), Deadline.after(SHORT))
        obliging.resume()
        assert obliging.answer(Sum([1]), soon()) == 1
    assert capfd.readouterr().err == "about to fall silent\n"


@pytest.mark.parametrize(("status", "how"), [(0, "exited with 0"), (3, "exited with 3")])
def test_a_child_that_ends_instead_of_answering_is_described(status: int, how: str) -> None:
    with child() as obliging:
        obliging.ask(Print("that is all"))
        with pytest.raises(ChildError) as caught:
            obliging.ask(Exit(status))
        assert caught.value.there_is == f"it {how}; it printed last:\nthat is all"
        with pytest.raises(ChildError, match=f"did not answer Sum\n.*it {how}"):
            obliging.ask(Sum([1]), soon())


def test_a_crashed_child_is_gone_and_one_that_was_killed_is_not_there() -> None:
    with child() as obliging:
        assert obliging.pid > 0
        obliging.crash()
        gone = obliging.read(soon())
        assert isinstance(gone, Gone)
        assert gone.how == "was ended by SIGKILL"
        assert not obliging.alive
        obliging.kill()
    assert not Path(f"/proc/{obliging.pid}").exists()
    obliging.kill()


def test_a_child_that_prints_much_waits_for_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    with child() as obliging:
        obliging.tell(Print("x" * 1000, times=1000))  # many times what a pipe holds
        assert obliging.answer(Print("", 0), soon()) is None
    assert capfd.readouterr().err == ("x" * 1000 + "\n") * 1000


def test_what_a_child_said_before_its_end_is_heard_although_another_holds_its_pipes() -> None:
    with child() as obliging:
        other = obliging.ask(Spawn())
        try:
            obliging.tell(Sum([1, 1]))
            obliging.tell(Exit(0))
            assert obliging.answer(Sum([1, 1]), soon()) == 2
            assert obliging.read(soon()) == Gone(obliging.pid, 0)
            obliging.kill()
            os.kill(other, 0)
        finally:
            os.kill(other, signal.SIGKILL)


def test_all_that_a_child_with_a_session_has_started_ends_with_it() -> None:
    with child(session=True) as obliging:
        other = obliging.ask(Spawn())
    deadline = soon()  # the kernel ends a process a moment after it was killed
    while state_of(other) not in ("", "Z", "X"):
        assert not deadline.expired
        time.sleep(0.005)


def test_one_whose_making_is_interrupted_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def interrupted(_: int, pid: int) -> None:
        started.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr("pdcore.children.child.Printed", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        child()
    gc.collect()
    (pid,) = started
    assert state_of(pid) == ""


def state_of(pid: int) -> str:
    """Return what the kernel says of a process; "" if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def test_who_listens_to_several_hears_the_one_that_speaks_and_can_be_woken() -> None:
    with child() as first, child() as second:
        second.tell(Sum([2]))
        assert heard([first, second], soon()) == [second]
        assert len(second.drain()) == 1
        wake = os.eventfd(1)
        assert heard([first, second], soon(), wake) == []
        os.close(wake)
        first.hang_up()
        assert first.finish(soon()) == [Gone(first.pid, 0)]
        assert heard([first], soon()) == []
