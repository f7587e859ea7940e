"""``pdcore conform``: what it says of runs that did not end well, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from pdcore.testing.run.outcomes import ConformanceReport, Ending, Outcome, TestName, groups_of

BROKEN = Path(__file__).parents[1] / "broken"

DEADLY = "many_pairs or 10000-192 or one_byte or an_empty_batch or deregister_may or disconnect_may"

Arguments = tuple[str, ...]


def broken(how: str, expression: str, *more: str) -> Arguments:
    return "broken", "--option", f"how={how}", "-k", expression, *more


RUNS: dict[str, Arguments] = {
    "deadly": broken("deadly", DEADLY, "--json"),
    "hung connect": broken(
        "hung connect",
        "close_may or one_byte or unaligned or later_writes",
        "--patience",
        "0.1",
        "--hangs",
        "2",
    ),
    "hung interpreter": broken("hung interpreter", "deregister_may or close_may", "--limit", "5", "--json"),
    "exit later": broken("exit later", "close_may"),
    "selection": ("local", "-k", "hygiene"),
    "none": ("local", "-k", "no_such_test", "--json"),
    "unreadable": ("local", "-k", "a b ("),
}


class Ran(msgspec.Struct):
    group: str
    test: str
    passed: bool
    ending: str
    reason: str
    seconds: float


class Outcomes(msgspec.Struct):
    backend: str
    conforms: bool
    verdict: str
    summary: str
    signal: int
    exit_status: int
    suite: int
    chosen: int
    ran: int
    passed: int
    failed: int
    not_run: list[str]
    tests: list[Ran]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(BROKEN), **more}


def conform(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pdcore", "conform", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


Runs = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """One run of the command line each, three at a time: most of them wait."""
    with ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(conform, *arguments) for name, arguments in RUNS.items()}


def outcomes_of(done: subprocess.CompletedProcess[str]) -> Outcomes:
    return msgspec.json.decode(done.stdout, type=Outcomes)


def test_an_engine_that_ends_its_process_fails_that_test_and_the_others_run(runs: Runs) -> None:
    done = runs["deadly"].result()
    assert done.returncode == 1, done.stderr
    told = outcomes_of(done)
    assert (told.verdict, told.exit_status, told.ran, told.not_run) == ("fails", 1, told.chosen, [])
    ended = {t.test: (t.ending, (t.reason.splitlines() or [""])[-1]) for t in told.tests}
    died = "the process of the test"
    assert ended == {
        "test_deregister_may_be_called_again": ("crashed", f"{died} exited with 0"),
        "test_disconnect_may_be_called_again_and_the_peer_connected_again": (
            "skipped",
            "Skipped: there is no need to look",
        ),
        "test_an_empty_batch_is_done_and_moves_nothing": ("passed", ""),
        "test_one_byte_arrives": ("passed", ""),
        "test_scattered_entries_arrive[10000-192]": ("crashed", f"{died} was ended by SIGSEGV"),
        "test_many_pairs_of_regions_arrive_in_one_batch": (
            "failed",
            "connect raised KeyboardInterrupt()",
        ),
    }
    assert "Segmentation fault" in done.stderr  # and where, as Python's own handler tells


def test_a_run_in_which_everything_hangs_stops_and_says_so(runs: Runs) -> None:
    done = runs["hung connect"].result()
    assert done.returncode == 1
    *_, last = done.stdout.splitlines()
    assert last == (
        "broken does not conform: 3 of 4 tests ran, 1 passed; stopped after 2 tests that hung "
        "(--hangs sets how many)"
    )
    assert "connect had not ended after 5.1 s" in done.stdout


def test_an_engine_that_holds_the_interpreter_is_killed_at_the_limit(runs: Runs) -> None:
    told = outcomes_of(runs["hung interpreter"].result())
    ended = {t.test: t for t in told.tests}
    hung = ended["test_deregister_may_be_called_again"]
    assert hung.ending == "hung"
    assert "rule: every call of an engine ends by its deadline" in hung.reason
    assert "the test had not ended after 5 s, and its process was killed" in hung.reason
    assert hung.seconds >= 5
    assert ended["test_close_may_be_called_again"].passed


def test_a_crash_after_the_last_test_is_told(runs: Runs) -> None:
    done = runs["exit later"].result()
    assert done.returncode == 1
    assert "1 of 1 tests ran, 1 passed; after the last test the process was ended by SIGABRT" in done.stdout


def test_a_selection_that_passes_is_not_called_conformance(runs: Runs) -> None:
    done = runs["selection"].result()
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    assert last.startswith("local: 1 of ")
    assert last.endswith(" tests were chosen, and passed; conformance takes all of them")
    assert "conforms" not in done.stdout
    assert "[1 of 1] ok      hygiene" in done.stdout


def test_an_expression_that_matches_nothing_is_wrong_usage(runs: Runs) -> None:
    done = runs["none"].result()
    assert done.returncode == 2
    assert "no test matches 'no_such_test'" in done.stderr
    told = outcomes_of(done)
    assert (told.verdict, told.conforms, told.ran, told.exit_status) == ("misused", False, 0, 2)


def test_an_expression_that_cannot_be_read_is_wrong_usage(runs: Runs) -> None:
    done = runs["unreadable"].result()
    assert done.returncode == 2
    assert "pytest cannot read 'a b ('" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_far_it_came_and_leaves_no_process(how: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    run = subprocess.Popen(
        [sys.executable, "-m", "pdcore", "conform", "local", "-k", "shapes", "--json"],
        env=environment(PDCORE_TEST_MARK=mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    first = next(line for line in run.stderr if line.startswith("["))
    assert "ok" in first
    assert len(processes_marked(mark)) >= 3  # this one, the one that runs the tests, and a far one
    run.send_signal(how)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 128 + how
    told = msgspec.json.decode(out, type=Outcomes)
    assert (told.verdict, told.conforms, told.signal) == ("interrupted", False, how)
    assert 1 <= told.ran < told.chosen == told.ran + len(told.not_run)
    assert f"interrupted by {how.name}: {told.ran} of {told.chosen} tests ran" in told.summary
    assert processes_marked(mark) == []


def processes_marked(mark: str) -> list[int]:
    """Return the processes that run with this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_an_unknown_backend_is_refused_before_any_test_runs() -> None:
    done = conform("unheard_of")
    assert done.returncode == 1
    assert "no backend is named 'unheard_of'" in done.stderr
    assert done.stdout == ""


def test_the_suite_names_the_package_that_it_misses() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['pytest'] = None\n" + WITHOUT_PYTEST],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'pdcore[testing]'" in done.stderr


WITHOUT_PYTEST = "from pdcore.cli import main; sys.exit(main(['conform', 'local']))"


PLANNED = tuple(TestName("shapes", test) for test in ("a", "b"))


def ran(test: str, ending: Ending = Ending.PASSED) -> Outcome:
    return Outcome("shapes", test, ending, "" if ending is Ending.PASSED else "because", 0.5)


@pytest.mark.parametrize(
    ("report", "verdict", "status"),
    [
        (ConformanceReport("x", "", 2, PLANNED, (ran("a"), ran("b"))), "conforms", 0),
        (ConformanceReport("x", "k", 3, PLANNED, (ran("a"), ran("b"))), "selection", 0),
        (ConformanceReport("x", "", 2, PLANNED, (ran("a"), ran("b", Ending.SKIPPED))), "fails", 1),
        (ConformanceReport("x", "", 2, PLANNED, (ran("a"), ran("b", Ending.CRASHED))), "fails", 1),
        (ConformanceReport("x", "", 2, PLANNED, (ran("a"),)), "fails", 1),
        (ConformanceReport("x", "", 2, PLANNED, (ran("a"), ran("b")), "pytest failed"), "stopped", 1),
        (ConformanceReport("x", "", 2, PLANNED, (ran("a"),), "interrupted", 2), "interrupted", 130),
        (ConformanceReport("x", "", 2, PLANNED, (ran("a"), ran("b")), "interrupted", 15), "interrupted", 143),
        (ConformanceReport("x"), "fails", 1),
        (ConformanceReport("x", "k", 2, (), (), "no test matches", misused=True), "misused", 2),
    ],
)
def test_only_all_that_there_is_and_passed_is_conformance(
    report: ConformanceReport, verdict: str, status: int
) -> None:
    assert (report.verdict, report.exit_status) == (verdict, status)
    assert report.conforms == (verdict == "conforms")
    assert ("x conforms" in report.summary) == report.conforms
    assert [len(outcomes) for outcomes in groups_of(report.outcomes).values()] == (
        [len(report.outcomes)] if report.outcomes else []
    )
