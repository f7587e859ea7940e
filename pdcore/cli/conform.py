"""``pdcore conform NAME``: run the conformance suite against a backend."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from pdcore.cli.arguments import Parser, count, key_value, positive
from pdcore.config.structuring import Text
from pdcore.host.console import UsageError, say, warn
from pdcore.selection.select import select

if TYPE_CHECKING:
    from pdcore.testing.run.outcomes import ConformanceReport, Outcome

__all__ = ["add_parser", "run"]

LEAST = 60.0
"""Seconds that every test may take, however small the patience is."""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "conform",
        help="run the conformance suite against a backend",
        description="Runs the conformance suite with real processes and real bytes. Exit status: 0 all that "
        "was chosen ran and passed (conformance, if that was all there is), 1 not, 2 wrong usage, 128 + the "
        "signal that interrupted it.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("backend", metavar="NAME", help="the backend's registered name")
    parser.add_argument(
        "--option", action="append", default=[], type=key_value, metavar="KEY=VALUE", help="a backend option"
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=30.0,
        metavar="S",
        help="seconds after which a call of the engine counts as hung (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="S",
        help=f"seconds that one test may take (default: 4 times the patience, at least {LEAST:g})",
    )
    parser.add_argument(
        "--hangs",
        type=count,
        default=3,
        metavar="N",
        help="stop after so many tests that hung or took the patience to fail (default: %(default)s)",
    )
    parser.add_argument(
        "-k",
        dest="expression",
        default="",
        metavar="EXPR",
        help="only tests or groups that match, as in pytest; a selection is no conformance",
    )
    parser.add_argument("--json", action="store_true", help="print what came out as JSON, progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Run the suite; returns the exit status."""
    if importlib.util.find_spec("pytest") is None:
        raise UsageError(
            "pdcore conform",
            "the suite needs pytest",
            "it is not installed",
            "pip install 'pdcore[testing]'",
            "usage: pdcore conform NAME",
        )
    from pdcore.testing.run.runner import RunLimits, run_suite
    from pdcore.testing.target import Target

    given = {key: Text(value) for key, value in args.option}
    # Refuses with every reason, before eighty tests do so one by one.
    chosen = select(args.backend, given)
    options = {key: getattr(chosen.options, key) for key in given}
    target = Target(args.backend, options, args.patience)
    limits = RunLimits(args.limit or max(LEAST, 4 * args.patience), args.hangs)
    progress = _TestLines(warn if args.json else say)
    report = run_suite(target, args.expression, limits, progress.show)
    if args.json:
        say(json.dumps(_as_data(report), indent=2))
    elif report.outcomes:
        _print_groups(report)
    if report.misused:
        warn(report.stopped)
    elif not args.json:
        say(report.summary)
    return report.exit_status


class _TestLines:
    """Prints each test as it ends, so that one sees what an engine is at."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._count = 0

    def show(self, outcome: Outcome, total: int) -> None:
        """Print one line, and the reason of a failure below it."""
        self._count += 1
        word = "ok" if outcome.passed else outcome.ending.value.upper()
        place = f"[{self._count:{len(str(total))}} of {total}]"
        line = f"{place} {word:<7} {outcome.group:<11} {outcome.seconds:6.2f} s  {outcome.test}"
        reason = "".join(f"    {text}\n" for text in outcome.reason.splitlines())
        self._tell(f"{line}\n{reason}".rstrip("\n"))


def _as_data(report: ConformanceReport) -> dict[str, object]:
    return {
        "backend": report.backend,
        "conforms": report.conforms,
        "verdict": report.verdict,
        "summary": report.summary,
        "stopped": report.stopped,
        "signal": report.signal,
        "exit_status": report.exit_status,
        "expression": report.expression,
        "suite": report.suite,
        "chosen": len(report.planned),
        "ran": len(report.outcomes),
        "passed": report.passed,
        "failed": len(report.outcomes) - report.passed,
        "not_run": [name.test for name in report.not_run],
        "tests": [
            {
                "group": outcome.group,
                "test": outcome.test,
                "passed": outcome.passed,
                "ending": outcome.ending.value,
                "reason": outcome.reason,
                "seconds": round(outcome.seconds, 3),
            }
            for outcome in report.outcomes
        ],
    }


def _print_groups(report: ConformanceReport) -> None:
    from pdcore.testing.run.outcomes import groups_of

    say("")
    for group, outcomes in groups_of(report.outcomes).items():
        passed = sum(outcome.passed for outcome in outcomes)
        seconds = sum(outcome.seconds for outcome in outcomes)
        chosen = sum(name.group == group for name in report.planned)
        word = "ok" if passed == chosen else "FAILED" if passed < len(outcomes) else "PARTLY"
        say(f"{word:<6}  {group:<12}  {passed} of {chosen} passed in {seconds:.1f} s")
