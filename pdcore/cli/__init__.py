"""The command line. A subcommand's module is imported only when it is the one that was asked for."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Sequence
from importlib import metadata

from pdcore.cli.arguments import Parser
from pdcore.host.console import UsageError, ended, say

__all__ = ["main"]

COMMANDS = {
    "backends": "list the installed backends and whether they can run here",
    "doctor": "say in detail what a backend has and what it lacks",
    "demo": "move KV cache between two processes and check every byte",
    "conform": "run the conformance suite on a backend",
    "bench": "compare pdcore with its raw engine",
    "replay": "go through what a manager recorded, step by step",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if it was good, 1 if it failed, 2 if it was called wrongly.

    128 and the signal's number if a signal ended it. With ``--json`` standard output carries one JSON
    document, of an error as well.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    as_data = "--json" in words
    if words[:1] == ["--json"]:
        words = [*words[1:], *words[:1]] if words[1:] else []
    return ended(lambda: _run(words, as_data), as_data=as_data)


def _run(words: Sequence[str], as_data: bool) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = _parser(words)
    if not words:
        raise UsageError("pdcore", "no command was given", "", "name one of these", parser.format_help())
    if "--version" in words[:1]:
        version = metadata.version("pdcore")
        say(json.dumps({"pdcore": version}) if as_data else f"pdcore {version}")
        return 0
    try:
        args = parser.parse_args(words)
    except SystemExit:  # argparse printed help
        return 0
    status: int = args.run(args)
    return status


def _parser(words: Sequence[str]) -> Parser:
    parser = Parser("pdcore", description=metadata.metadata("pdcore")["Summary"])
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    wanted = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == wanted:
            importlib.import_module(f"pdcore.cli.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=summary)
    return parser
