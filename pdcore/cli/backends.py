"""``pdcore backends``: every installed backend, what it runs on, and whether it can run here."""

from __future__ import annotations

import argparse
import json
import os

from pdcore.cli.arguments import Parser
from pdcore.cli.table import columns
from pdcore.host.console import say, warn
from pdcore.selection.assessment import Assessment, assess
from pdcore.selection.discovery import discover

__all__ = ["add_parser", "run"]


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "backends",
        help="list the installed backends and whether they can run here",
        description="Lists every installed backend with its distribution, its protocols, what it runs on, "
        "and whether it can run on this machine. Nothing is started.",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the list; returns 0."""
    discovery = discover()
    found = [assess(candidate, environ=os.environ) for candidate in discovery.backends]
    if args.json:
        rows = [_as_data(assessment) for assessment in found]
        say(json.dumps({"backends": rows, "notes": discovery.notes}, indent=2))
        return 0
    heading = ("NAME", "DISTRIBUTION", "PROTOCOLS", "RUNS ON", "VERDICT")
    say(columns([heading, *(_as_cells(assessment) for assessment in found)]))
    for note in discovery.notes:
        warn(f"note: {note}")
    return 0


def _protocols(found: Assessment) -> list[str]:
    if found.variant is not None:
        return [found.variant.protocol]
    return [*found.spec.protocols] if found.spec else []


def _as_cells(found: Assessment) -> tuple[str, ...]:
    return (
        found.candidate.name,
        found.candidate.distribution,
        ", ".join(_protocols(found)) or "-",
        found.spec.runs_on if found.spec else "-",
        found.problem.reason if found.problem else "ready",
    )


def _as_data(found: Assessment) -> dict[str, object]:
    return {
        "name": found.candidate.name,
        "distribution": found.candidate.distribution,
        "module": found.candidate.module,
        "summary": found.spec.summary if found.spec else None,
        "protocols": _protocols(found),
        "runs_on": found.spec.runs_on if found.spec else None,
        "ready": found.problem is None,
        "reason": found.problem.reason if found.problem else None,
        "fix": found.problem.fix if found.problem else None,
    }
