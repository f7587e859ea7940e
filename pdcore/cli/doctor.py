"""``pdcore doctor``: what a backend has, what it lacks, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata

from pdcore.cli.arguments import Parser
from pdcore.cli.echo import loopback_echo
from pdcore.cli.findings import Data, echo_failed, echoed, findings, observer
from pdcore.cli.prose import rows
from pdcore.cli.table import columns
from pdcore.config.sources import LoadedConfig, load_config
from pdcore.contract.backend import CONTRACT_VERSION
from pdcore.errors import PDCoreError
from pdcore.host.console import say
from pdcore.model import Deadline
from pdcore.selection.assessment import Assessment, assess
from pdcore.selection.discovery import Discovery, discover
from pdcore.selection.plugins import Observer
from pdcore.selection.select import explain, load_observers, select

__all__ = ["add_parser", "run"]

ECHO_SECONDS = 60.0
"""For writing and comparing, beside the time that the configuration gives an engine to start."""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "doctor",
        help="say in detail what a backend has and what it lacks",
        description="Looks at one backend, or at all of them: metadata, import, contract, options, probe, "
        "facts and protocols. If a backend is named and ready, one engine of it writes 64 MiB to itself, and "
        "every byte is compared. Exit status: 1 if the named backend cannot run here, or the echo fails.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a backend (default: all of them)")
    parser.add_argument("--no-echo", action="store_true", help="start no engine")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; returns 1 if a backend was named and is not ready, or fails the echo.

    Raises:
        SelectionError: no backend has this name.
        ConfigError: the configuration of the named backend is wrong.
    """
    discovery = discover()
    observers, verdicts = load_observers(discovery.observers)
    if args.name is None:
        found = [assess(candidate, observers, environ=os.environ) for candidate in discovery.backends]
        backends = [findings(assessment, {}) for assessment in found]
        good = True
    else:
        found, loaded = _examine(args.name, discovery, observers)
        backends = [findings(assessment, loaded.origins) for assessment in found]
        ready = [row for row, assessment in zip(backends, found, strict=True) if assessment.problem is None]
        good = bool(ready) and (args.no_echo or _echo(ready[0], loaded))
    report = {
        "pdcore": metadata.version("pdcore"),
        "contract": CONTRACT_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backends": backends,
        "observers": [observer(candidate, problem) for candidate, problem in verdicts],
        "notes": list(discovery.notes),
    }
    say(json.dumps(report, indent=2) if args.json else _as_text(report))
    return 0 if good else 1


def _examine(
    name: str, discovery: Discovery, observers: tuple[Observer, ...]
) -> tuple[list[Assessment], LoadedConfig]:
    named = [candidate for candidate in discovery.backends if candidate.name == name]
    if not named:
        others = [assess(candidate, environ=os.environ) for candidate in discovery.backends]
        raise explain(name, [(other.candidate, other.problem) for other in others])
    loaded = load_config(cli={"backend": name}, plugin_prefixes=discovery.names)
    options = loaded.config.backend_options
    return [
        assess(candidate, observers, options, environ=os.environ, origins=loaded.origins)
        for candidate in named
    ], loaded


def _echo(found: Data, loaded: LoadedConfig) -> bool:
    """Add what came of the echo to the findings of a backend that is ready."""
    config = loaded.config
    try:
        backend = select(loaded)
        deadline = Deadline.after(config.timeouts.engine_start + ECHO_SECONDS)
        found |= echoed(loopback_echo(backend, config, deadline))
    except PDCoreError as error:
        found |= echo_failed(error)
        return False
    return True


def _as_text(report: Mapping[str, object]) -> str:
    backends = report["backends"]
    assert isinstance(backends, list)
    parts = [_block(found) for found in backends] or ["no backend is installed"]
    rest = {key: value for key, value in report.items() if key != "backends"}
    return "\n\n".join([*parts, columns(rows(rest))])


def _block(found: Data) -> str:
    rest = {key: value for key, value in found.items() if key not in ("name", "ready", "verdict")}
    return f"{found['name']}: {found['verdict']}\n{columns(rows(rest), indent='  ')}"
