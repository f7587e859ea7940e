"""``pdcore conform NAME``: run the conformance suite against a backend."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pdcore.cli.arguments import key_value, positive
from pdcore.selection import select
from pdcore.structuring import Text

if TYPE_CHECKING:
    from pdcore.testing.runner import Outcome
    from pdcore.testing.target import Target

__all__ = ["add_parser", "run"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "conform",
        help="run the conformance suite against a backend",
        description="Runs the conformance suite with real processes and real bytes. Exit status: 0 all "
        "tests passed, 1 some failed, 2 wrong usage.",
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
        "-k",
        dest="expression",
        default="",
        metavar="EXPR",
        help="only tests or groups that match, as in pytest",
    )
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the suite; returns the exit status."""
    if importlib.util.find_spec("pytest") is None:
        return _unusable('the suite needs pytest: pip install "pdcore[testing]"')
    from pdcore.testing.target import Target

    given = {key: Text(value) for key, value in args.option}
    # Refuses with every reason, before sixty tests do so one by one.
    chosen = select(args.backend, given)
    options = {key: getattr(chosen.options, key) for key in given}
    outcomes = _watched(Target(args.backend, options, args.patience), args.expression)
    if not outcomes:
        return _unusable(f"no test matches {args.expression!r}")
    failed = [o for o in outcomes if not o.passed]
    if args.json:
        print(json.dumps(_as_data(args.backend, outcomes), indent=2))
    else:
        _print_groups(args.backend, outcomes)
    return 1 if failed else 0


def _unusable(why: str) -> int:
    print(why, file=sys.stderr)
    return 2


def _watched(target: Target, expression: str) -> list[Outcome]:
    from pdcore.testing.runner import run_suite

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"conform {target.name}", total=None)

        def watch(outcome: Outcome, total: int) -> None:
            progress.update(task, advance=1, total=total, description=outcome.group)

        return run_suite(target, expression, watch)


def _as_data(backend: str, outcomes: Sequence[Outcome]) -> dict[str, object]:
    failed = sum(not o.passed for o in outcomes)
    return {
        "backend": backend,
        "passed": len(outcomes) - failed,
        "failed": failed,
        "tests": [attrs.asdict(o) for o in outcomes],
    }


def _print_groups(backend: str, outcomes: Sequence[Outcome]) -> None:
    groups = dict.fromkeys(o.group for o in outcomes)
    for group in groups:
        mine = [o for o in outcomes if o.group == group]
        passed = sum(o.passed for o in mine)
        print(f"{'ok    ' if passed == len(mine) else 'FAILED'}  {group:<12}  {passed} of {len(mine)}")
        for outcome in mine:
            if not outcome.passed:
                print(f"          {outcome.test}")
                print("".join(f"              {line}\n" for line in outcome.reason.splitlines()), end="")
    passed = sum(o.passed for o in outcomes)
    verdict = "conforms" if passed == len(outcomes) else "does not conform"
    print(f"{backend} {verdict}: {passed} of {len(outcomes)} tests passed")
