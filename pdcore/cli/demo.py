"""``pdcore demo``: replay requests between two real processes and check every byte."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pdcore.cli.arguments import count, positive
from pdcore.cli.choice import Chosen, add_backend_flags, choose
from pdcore.demo.messages import WorkerSettings
from pdcore.demo.models import MODELS
from pdcore.demo.report import Report
from pdcore.demo.router import run_demo
from pdcore.demo.workload import Request, from_distribution, from_trace, pages_needed, refuse_too_long
from pdcore.model import Deadline

__all__ = ["add_parser", "run"]

SHOW_PROGRESS_AFTER = 2.0
TRANSFER_MODELS = ("workers", "inline")
AUX_ROUTES = ("auto", "engine", "tcp")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "demo",
        help="move KV cache between two processes and check every byte",
        description="Starts a prefill and a decode process, replays requests, and compares every byte at "
        "the far side with what a seed says. Exit status: 0 all verified, 1 not, 2 wrong usage.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add_backend_flags(parser)
    add("--model", default="qwen2.5-0.5b", choices=sorted(MODELS), metavar="NAME", help=", ".join(MODELS))
    add("--requests", type=count, default=200, metavar="N", help="how many (default: %(default)s)")
    add("--trace", type=Path, metavar="FILE", help="JSON lines with timestamp and input_length")
    add("--seed", type=int, default=0, help="of lengths, pages and contents (default: %(default)s)")
    add("--page-size", type=count, default=16, metavar="TOKENS", help="default: %(default)s")
    add("--chunk-pages", type=count, default=0, metavar="N", help="send after every N pages")
    add("--concurrency", type=count, default=8, metavar="N", help="in flight (default: %(default)s)")
    add(
        "--memory",
        type=positive,
        default=6.75,
        metavar="GIB",
        help="of both pools at most (default: %(default)s)",
    )
    add("--transfer-model", choices=TRANSFER_MODELS, help="default: PDCORE_TRANSFER_MODEL, or workers")
    add("--aux", choices=AUX_ROUTES, help="how aux rows travel (default: PDCORE_TRANSFER_AUX, or auto)")
    add("--deadline", type=positive, default=60.0, metavar="S", help="per request (default: %(default)s)")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    chosen = choose(args, {"transfer.model": args.transfer_model, "transfer.aux": args.aux})
    settings, requests = _plan(args, chosen)
    report = _watched(settings, requests, args.concurrency)
    if args.json:
        print(json.dumps(report.as_data(), indent=2))
    else:
        print("\n".join(report.lines()))
    return 0 if report.good else 1


def _plan(args: argparse.Namespace, chosen: Chosen) -> tuple[WorkerSettings, tuple[Request, ...]]:
    shape = MODELS[args.model].layout(args.page_size, 1)
    limit = max(1, int(args.memory * 2**30) // (2 * shape.page_bytes))
    requests = (
        from_trace(args.trace, args.requests)
        if args.trace
        else from_distribution(args.requests, args.seed, limit * args.page_size)
    )
    refuse_too_long(requests, args.page_size, limit, shape.page_bytes)
    settings = WorkerSettings(
        model=args.model,
        page_size=args.page_size,
        num_pages=min(limit, pages_needed(requests, args.page_size, args.concurrency)),
        seed=args.seed,
        slots=args.concurrency,
        chunk_pages=args.chunk_pages,
        backend=chosen.backend.name,
        options=chosen.options,
        transfer_model=chosen.config.transfer.model.value,
        aux=chosen.config.transfer.aux,
        deadline=args.deadline,
    )
    return settings, requests


def _watched(settings: WorkerSettings, requests: tuple[Request, ...], concurrency: int) -> Report:
    """Run with a progress bar on stderr, if that is a terminal and the run takes longer than 2 s."""
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=len(requests))
    quiet_until = Deadline.after(SHOW_PROGRESS_AFTER)

    def tell(ended: int) -> None:
        if quiet_until.expired and bar.console.is_terminal:
            bar.start()
            bar.update(task, completed=ended)

    try:
        return run_demo(settings, requests, concurrency, tell)
    finally:
        if bar.live.is_started:
            bar.stop()
