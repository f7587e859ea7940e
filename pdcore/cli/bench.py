"""``pdcore bench``: the same bytes through the raw engine and through pdcore, as ratios."""

from __future__ import annotations

import argparse
import json

import attrs

from pdcore.bench.cases import Effort
from pdcore.bench.load import BenchError
from pdcore.bench.suite import run_bench
from pdcore.cli.arguments import Parser, count, device
from pdcore.cli.choice import add_backend_flags, choose
from pdcore.cli.progress import telling
from pdcore.demo.messages import WorkerSettings
from pdcore.demo.planning.capacity import Estimate, FreeMemory
from pdcore.host.console import say
from pdcore.model import CPU, Role

__all__ = ["add_parser", "run"]

TOKEN_BYTES = 128 * 1024
"""What a token of the measured model takes."""


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
    add("--device", type=device, default=CPU, help="where the KV memory lies: cpu (default), cuda or cuda:1")
    add("--quick", action="store_true", help="a first look: less memory, fewer rounds")
    add("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; returns the exit status."""
    chosen = choose(args)
    # Its loop waits for rooms to end and polls none, as the inline model needs.
    settings = WorkerSettings(
        backend=chosen.backend.name,
        options=chosen.options,
        transfer_model="workers",
        staging=chosen.config.transfer.staging,
        device=args.device,
    )
    effort = Effort.quick() if args.quick else Effort()
    if args.mib:
        effort = attrs.evolve(effort, tokens=args.mib * 2**20 // TOKEN_BYTES)
    if args.page_size:
        effort = attrs.evolve(effort, page_sizes=tuple(args.page_size))
    if (largest := max(effort.page_sizes)) > effort.tokens:
        raise BenchError(
            f"a page of {largest:,} tokens is larger than the pool",
            f"{effort.tokens:,} tokens in {effort.tokens * TOKEN_BYTES >> 20} MiB",
            "use a larger --mib or a smaller --page-size",
        )
    on_host = len(Role) * effort.tokens * TOKEN_BYTES if args.device == CPU else 0
    sides = Estimate(on_host, len(Role))
    sides.refuse_more_than(FreeMemory.here(), "use a smaller --mib, or --quick")
    with telling("bench") as tell:
        report = run_bench(settings, effort, lambda what: tell(f"measuring {what}"))
    say(json.dumps(report.as_data(), indent=2) if args.json else "\n".join(report.lines()))
    return 0
