"""The command line. A subcommand's module is imported only when it is the one that was asked for."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from importlib import metadata

from pdcore.errors import PDCoreError

__all__ = ["main"]

COMMANDS = {
    "backends": "list the installed backends and whether they can run here",
    "doctor": "say in detail what a backend has and what it lacks",
    "demo": "move KV cache between two processes and check every byte",
    "conform": "run the conformance suite on a backend",
    "bench": "compare pdcore with its raw engine",
}
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if it was good, 1 if it failed, 2 if it was called wrongly."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        args = _parser(words).parse_args(words)
    except SystemExit as stop:  # argparse printed help, the version or a usage error
        return stop.code if isinstance(stop.code, int) else 0
    try:
        status: int = args.run(args)
    except PDCoreError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("pdcore", description=metadata.metadata("pdcore")["Summary"])
    parser.add_argument("--version", action="version", version=f"pdcore {metadata.version('pdcore')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    wanted = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"pdcore.cli.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=summary)
    return parser
