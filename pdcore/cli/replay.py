"""``pdcore replay FILE``: what a manager recorded (``manager.record``), again, on a fresh machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pdcore.cli.arguments import Parser
from pdcore.errors import ArgumentError
from pdcore.host.console import say
from pdcore.model import RoomId
from pdcore.protocol import stimuli as s
from pdcore.protocol.history.log import history
from pdcore.protocol.history.picture import differences, picture
from pdcore.protocol.history.replay import Replay, Step
from pdcore.protocol.history.transcript import read

__all__ = ["add_parser", "run"]


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "replay",
        help="go through what a manager recorded, step by step",
        description="Feeds a fresh machine with what a manager was told (manager.record(FILE)), prints each "
        "step, and says whether it reaches the same state. Exits with 1 if not.",
    )
    parser.add_argument("file", metavar="FILE", help="what manager.record() wrote")
    parser.add_argument("--room", type=int, help="print only what happened to this room")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay and print; returns 0 if the state is the same."""
    try:
        with Path(args.file).open("rb") as file:
            recording = read(file)
    except OSError as error:
        raise ArgumentError(
            f"{args.file} cannot be read", str(error), "name a file that manager.record() wrote"
        ) from error
    wanted = None if args.room is None else {e.number for e in history(recording.entries, RoomId(args.room))}
    replay = Replay(recording)
    steps = [step for step in replay.steps() if wanted is None or step.entry.number in wanted]
    differ = list(differences(recording.state, picture(replay.machine)))
    if args.json:
        rows = [{"moment": step.entry.moment, "what": _what(step), "done": _done(step)} for step in steps]
        say(json.dumps({"steps": rows, "missing": recording.missing, "differences": differ}, indent=2))
        return 1 if differ else 0
    first = recording.entries[0].moment if recording.entries else 0.0
    for step in steps:
        say(f"{step.entry.moment - first:10.4f} s  {_what(step)}: {', '.join(_done(step)) or '-'}")
    gap = f"; {recording.missing} stimuli before or between were not kept" if recording.missing else ""
    say(f"{len(recording.entries)} stimuli{gap}")
    for line in differ:
        say(f"differs: {line}")
    say("another state is reached" if differ else "the same state is reached")
    return 1 if differ else 0


def _what(step: Step) -> str:
    stimulus = step.entry.stimulus
    return type(stimulus.message if isinstance(stimulus, s.Heard) else stimulus).__name__


def _done(step: Step) -> list[str]:
    names = [type(action).__name__ for action in step.actions]
    return [*names, f"raised {step.raised!r}"] if step.raised is not None else names
