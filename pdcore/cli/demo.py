"""``pdcore demo``: replay requests between real processes and check every byte."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import attrs

from pdcore.cli.arguments import Parser, count, number, whole
from pdcore.cli.choice import Chosen, add_backend_flags, choose
from pdcore.cli.progress import counting
from pdcore.config.records import MAX_SECONDS
from pdcore.demo.content.models import MODELS
from pdcore.demo.messages import WorkerSettings
from pdcore.demo.planning.capacity import Estimate, FreeMemory, shm_shortage
from pdcore.demo.planning.fit import refuse_misfits
from pdcore.demo.planning.groups import Groups, group_of
from pdcore.demo.planning.workload import (
    LONGEST_TOKENS,
    Prompt,
    from_distribution,
    from_trace,
    page_limit,
    pages_needed,
    refuse_too_long,
    with_prefix,
)
from pdcore.demo.router import run_demo
from pdcore.host.console import say, warn
from pdcore.model import Role
from pdcore.pairing.topology import CPSenders, DPChoice, Topology

__all__ = ["add_parser", "run"]

MOST_REQUESTS, MOST_IN_FLIGHT = 1_000_000, 4_096
LESS = "use a smaller --memory, --concurrency, --longest or --model, or fewer ranks"
TRANSFER_MODELS = ("workers", "inline")
AUX_ROUTES = ("auto", "engine", "tcp")
DP = {"room": DPChoice.BY_ROOM, "query": DPChoice.QUERY}
CP_SENDERS = {"all": CPSenders.ALL_RANKS, "rank0": CPSenders.RANK_0}


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "demo",
        help="move KV cache between processes and check every byte",
        description="Starts a process for each prefill and decode rank, replays requests, and compares every "
        "byte at the far side with what a seed says of its token, layer and head. "
        "Exit status: 0 all verified, 1 not, 2 wrong usage.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add_backend_flags(parser)
    add("--model", default="qwen2.5-0.5b", choices=sorted(MODELS), metavar="NAME", help=", ".join(MODELS))
    for role in Role:
        add(
            f"--{role.value}",
            type=_group,
            default=Topology(),
            metavar="tp=N,pp=N,cp=N,dp=N",
            help="how many ranks, along which axes (default: one)",
        )
    add("--cp-senders", choices=CP_SENDERS, default="all", help="which prefill CP ranks send (default: all)")
    add("--dp", choices=DP, default="room", help="how decode learns the prefill DP rank (default: room)")
    _add_workload(parser)
    add("--transfer-model", choices=TRANSFER_MODELS, help="default: PDCORE_TRANSFER_MODEL, or the backend's")
    add("--aux", choices=AUX_ROUTES, help="how aux rows travel (default: PDCORE_TRANSFER_AUX, or auto)")
    add("--json", action="store_true", help="print the report as JSON")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    """Add what says which requests are served, and with how much of everything."""
    add = parser.add_argument
    add(
        "--requests",
        type=whole(1, MOST_REQUESTS),
        default=200,
        metavar="N",
        help="how many (default: %(default)s)",
    )
    add(
        "--longest",
        type=count,
        default=LONGEST_TOKENS,
        metavar="TOKENS",
        help="without a trace (default: %(default)s)",
    )
    add("--trace", type=Path, metavar="FILE", help="JSON lines with timestamp and input_length")
    add(
        "--seed",
        type=whole(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of all contents (default: %(default)s)",
    )
    add("--page-size", type=whole(1, 65_536), default=16, metavar="TOKENS", help="default: %(default)s")
    add("--chunk-pages", type=count, default=0, metavar="N", help="send after every N pages")
    add(
        "--concurrency",
        type=whole(1, MOST_IN_FLIGHT),
        default=8,
        metavar="N",
        help="in flight (default: %(default)s)",
    )
    add(
        "--memory",
        type=number(0.001, 1e6),
        default=6.75,
        metavar="GIB",
        help="of all pools together at most (default: %(default)s)",
    )
    add(
        "--prefix",
        type=number(0, 1),
        default=0.0,
        metavar="FRACTION",
        help="of each request's pages, held by decode (default: 0)",
    )
    add(
        "--deadline",
        type=number(0.001, MAX_SECONDS),
        default=60.0,
        metavar="S",
        help="per request (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    chosen = choose(args, {"transfer.model": args.transfer_model, "transfer.aux": args.aux})
    groups = Groups(
        attrs.evolve(args.prefill, cp_senders=CP_SENDERS[args.cp_senders]), args.decode, DP[args.dp]
    )
    settings, requests = _plan(args, chosen, groups)
    with counting("requests", len(requests)) as tell:
        report = run_demo(settings, requests, args.concurrency, tell, groups)
    if args.json:
        say(json.dumps(report.as_data(), indent=2))
    else:
        say("\n".join(report.lines()))
    return 0 if report.good else 1


def _group(text: str) -> Topology:
    try:
        return group_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _plan(
    args: argparse.Namespace, chosen: Chosen, groups: Groups
) -> tuple[WorkerSettings, tuple[Prompt, ...]]:
    shape, size = MODELS[args.model], args.page_size
    ranks = [rank for role in Role for rank in groups.ranks(role)]
    page_bytes = sum(shape.page_bytes(size, rank) for rank in ranks)
    slot_bytes = sum(shape.slot_bytes(size, rank) for rank in ranks)
    limit = page_limit(int(args.memory * 2**30), page_bytes, slot_bytes, args.concurrency)
    requests = (
        from_trace(args.trace, args.requests)
        if args.trace
        else from_distribution(args.requests, args.seed, min(args.longest, limit * size))
    )
    refuse_too_long(requests, size, limit, page_bytes, args.concurrency * slot_bytes)
    refuse_misfits(shape, size, groups)
    num_pages = min(limit, pages_needed(requests, size, args.concurrency))
    estimate = Estimate(num_pages * page_bytes + args.concurrency * slot_bytes, len(ranks))
    estimate.refuse_more_than(FreeMemory.here(), LESS)
    if shortage := shm_shortage(len(ranks)):
        warn(f"note: {shortage}")
    model = chosen.config.transfer.model
    settings = WorkerSettings(
        model=args.model,
        page_size=size,
        num_pages=num_pages,
        seed=args.seed,
        slots=args.concurrency,
        chunk_pages=args.chunk_pages,
        backend=chosen.backend.name,
        options=chosen.options,
        transfer_model=model.value if model else None,
        aux=chosen.config.transfer.aux,
        staging=chosen.config.transfer.staging,
        deadline=args.deadline,
    )
    return settings, with_prefix(requests, args.prefix, size)
