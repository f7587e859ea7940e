"""``pdcore bench``: the same bytes through the raw engine and through pdcore, as ratios."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.status import Status

from pdcore.bench.cases import Effort
from pdcore.bench.report import BenchReport
from pdcore.bench.suite import run_bench
from pdcore.cli.choice import add_backend_flags, choose
from pdcore.demo.messages import WorkerSettings

__all__ = ["add_parser", "run"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "bench",
        help="measure pdcore against the raw engine",
        description="Moves the same bytes through the raw engine and through pdcore between two processes, "
        "in turns. Each side takes about 600 MiB. Exit status: 0 measured, 1 not, 2 wrong usage.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add_backend_flags(parser)
    add("--quick", action="store_true", help="a first look: less memory, fewer rounds")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns the exit status."""
    chosen = choose(args)
    settings = WorkerSettings(backend=chosen.backend.name, options=chosen.options)
    report = _watched(settings, Effort.quick() if args.quick else Effort())
    print(json.dumps(report.as_data(), indent=2) if args.json else "\n".join(report.lines()))
    return 0


def _watched(settings: WorkerSettings, effort: Effort) -> BenchReport:
    """Run, saying on stderr what is measured if that is a terminal."""
    console = Console(stderr=True)
    with Status("bench", console=console) as status:
        return run_bench(settings, effort, lambda what: status.update(f"measuring {what}"))
