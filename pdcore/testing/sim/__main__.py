"""``python -m pdcore.testing.sim --rooms N --seed S``: exit status 0 if nothing was violated, else 1."""

from __future__ import annotations

import argparse
import gc
import sys
import time

from pdcore.testing.sim.run import Figures, run, shrunk


def main() -> int:
    """Run worlds until there were so many rooms."""
    parser = argparse.ArgumentParser(prog="python -m pdcore.testing.sim", description=__doc__)
    parser.add_argument("--rooms", type=int, default=20_000, help="requests in all (20,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first world (1)")
    parser.add_argument("--each", type=int, default=200, help="requests of one world (200)")
    chosen = parser.parse_args()
    gc.freeze()
    gc.disable()
    figures, start = Figures(), time.monotonic()
    failure = run(chosen.seed, chosen.rooms, chosen.each, figures)
    seconds = time.monotonic() - start
    print(figures.told(chosen.seed, seconds))
    if failure is None:
        return 0
    rooms = shrunk(failure.seed, chosen.each)
    print(f"violated in the world of seed {failure.seed}: {failure.what}", file=sys.stderr)
    print(
        f"again: python -m pdcore.testing.sim --seed {failure.seed} --rooms {rooms} --each {rooms}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
