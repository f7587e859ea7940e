"""``pdcore bench``: the same bytes through the raw engine and through pdcore, as ratios."""

from __future__ import annotations

import argparse
import json

import attrs
from rich.console import Console
from rich.status import Status

from pdcore.bench.cases import Effort
from pdcore.bench.report import BenchReport
from pdcore.bench.suite import run_bench
from pdcore.cli.arguments import Parser, count
from pdcore.cli.choice import add_backend_flags, choose
from pdcore.console import say
from pdcore.demo.messages import WorkerSettings

__all__ = ["add_parser", "run"]

TOKENS_PER_MIB = 8
"""A token of the measured model takes 128 KiB."""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "bench",
        help="measure pdcore against the raw engine",
        description="Moves the same bytes through the raw engine and through pdcore between two processes, "
        "in turns. Each side takes about 600 MiB, or what --mib says. "
        "Exit status: 0 measured, 1 not, 2 wrong usage.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add_backend_flags(parser)
    add("--mib", type=count, metavar="N", help="MiB of a large transfer, and of a pool (default: 512)")
    add(
        "--page-size",
        type=count,
        action="append",
        metavar="TOKENS",
        help="of large transfers; may be repeated (default: 64, 16 and 1)",
    )
    add("--quick", action="store_true", help="a first look: less memory, fewer rounds")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns the exit status."""
    chosen = choose(args)
    # Its loop waits for rooms to end and polls none, as the inline model needs.
    settings = WorkerSettings(backend=chosen.backend.name, options=chosen.options, transfer_model="workers")
    effort = Effort.quick() if args.quick else Effort()
    if args.mib:
        effort = attrs.evolve(effort, tokens=args.mib * TOKENS_PER_MIB)
    if args.page_size:
        effort = attrs.evolve(effort, page_sizes=tuple(args.page_size))
    report = _watched(settings, effort)
    say(json.dumps(report.as_data(), indent=2) if args.json else "\n".join(report.lines()))
    return 0


def _watched(settings: WorkerSettings, effort: Effort) -> BenchReport:
    """Run, saying on stderr what is measured if that is a terminal."""
    console = Console(stderr=True)
    with Status("bench", console=console) as status:
        return run_bench(settings, effort, lambda what: status.update(f"measuring {what}"))
