"""``python -m pdcore.testing.chaos``: exit status 0 if nothing was found that must not be, else 1."""

from __future__ import annotations

import argparse
import sys
import time

from pdcore.host.console import ended, say, warn
from pdcore.testing.chaos.report import ChaosReport
from pdcore.testing.chaos.run import ChaosSettings, run_chaos

TELL = 30.0
"""Seconds between two lines on stderr."""


def main() -> int:
    """Run, and print the report."""
    parser = argparse.ArgumentParser(
        "python -m pdcore.testing.chaos", epilog="With PDCORE_AUTH_KEY set, the workers use that key."
    )
    parser.add_argument("--seconds", type=float, default=1800.0, help="default: %(default)g")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="local")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=3, help="of each side (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between two disturbances")
    parser.add_argument(
        "--deadline", type=float, default=8.0, help="of a room, in seconds (default: %(default)g)"
    )
    parser.add_argument("--packed", action="store_true", help="all bytes go through staging slots")
    args = parser.parse_args()
    settings = ChaosSettings(
        seconds=args.seconds,
        seed=args.seed,
        backend=args.backend,
        options=dict(option.split("=", 1) for option in args.option),
        workers=args.workers,
        pause=args.pause,
        deadline=args.deadline,
        packed=args.packed,
    )
    report = run_chaos(settings, _Teller())
    say("\n".join(report.lines()))
    return 0 if report.good else 1


class _Teller:
    """Tells on stderr now and then how it goes."""

    def __init__(self) -> None:
        self._next = time.monotonic() + TELL

    def __call__(self, report: ChaosReport) -> None:
        if time.monotonic() >= self._next:
            self._next += TELL
            warn(
                f"{report.seconds:.0f} s: {report.rooms} rooms, {report.verified} verified, "
                f"{len(report.wrong_bytes)} wrong, {len(report.hung_rooms)} hung"
            )


if __name__ == "__main__":
    sys.exit(ended(main))
