"""``python -m pdcore.testing.faults --seed N``: replay the schedule of a seed."""

from __future__ import annotations

import argparse
import logging
import sys

from pdcore.host.console import ended, say
from pdcore.testing.faults.replay import replay
from pdcore.testing.faults.schedule import MOST_FAULTS, Fault

SETTLED = "every room ended, every page was released, no wrong byte"


def main() -> int:
    """Replay one seed, or several in a row; returns 1 at the first broken invariant."""
    parser = argparse.ArgumentParser("python -m pdcore.testing.faults", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=150, help="operations of each (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.15, help="share of events that go wrong")
    parser.add_argument(
        "--fault",
        action="append",
        type=Fault,
        default=[],
        metavar="NAME",
        help=f"only these (default: {' '.join(fault.value for fault in MOST_FAULTS)})",
    )
    parser.add_argument("--packed", action="store_true", help="all bytes go through staging slots")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    for seed in range(args.seed, args.seed + args.seeds):
        run = replay(seed, args.steps, args.rate, args.fault or MOST_FAULTS, packed=args.packed)
        verdict = run.broken or f"{run.successes} requests arrived; {SETTLED}"
        if run.broken or args.seeds == 1:
            say("\n".join((*run.operations, *run.faults)))
        say(f"seed {seed}: {len(run.operations)} operations, {len(run.faults)} faults: {verdict}")
        if run.broken:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(ended(main))
