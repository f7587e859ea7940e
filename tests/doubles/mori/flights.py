"""Transfers in flight, of all engines of this process: what the detectors of lifetime look at."""

from __future__ import annotations

import weakref

from .findings import report
from .status import TransferStatus
from .values import StatusCode

RegionKey = tuple[str, int]
"""Engine key and memory id."""


class Flight:
    """One transfer; holds its status weakly, where the real library holds a raw pointer."""

    def __init__(self, status: TransferStatus, local: RegionKey, remote: RegionKey, requests: int) -> None:
        self._status = weakref.ref(status, self._dropped)
        self.local, self.remote = local, remote
        self._requests = requests
        flights.add(self)
        status.Update(StatusCode.IN_PROGRESS, "")

    def landed(self, error: str | None) -> None:
        """One of its work requests ended: the first error ends the transfer, or the last success."""
        self._requests -= 1
        status = self._status()
        if status is None or self not in flights or (error is None and self._requests):
            return
        flights.discard(self)  # first, since a caller may drop the status as soon as it is terminal
        if error is None:
            status.Update(StatusCode.SUCCESS, "success")
        else:
            status.Update(StatusCode.ERR_RDMA_OP, error)

    def uses(self, region: RegionKey) -> bool:
        return region in (self.local, self.remote)

    def _dropped(self, _: object) -> None:
        if self in flights:
            flights.discard(self)
            report("status dropped", f"a transfer {self} was in flight when its status was collected")

    def __str__(self) -> str:
        return f"{self.local[0]}:{self.local[1]} -> {self.remote[0]}:{self.remote[1]}"


flights: set[Flight] = set()


def check_deregistration(region: RegionKey) -> None:
    used = [str(flight) for flight in list(flights) if flight.uses(region)]
    if used:
        report("deregistered in flight", f"memory {region[0]}:{region[1]} is used by {', '.join(used)}")


def check_end_of_engine(key: str) -> None:
    left = [flight for flight in list(flights) if flight.local[0] == key]
    flights.difference_update(left)  # nothing ends them any more
    if left:
        report("engine dropped", f"engine {key} with {len(left)} in flight: {', '.join(map(str, left))}")


def check_end_of_test() -> None:
    left = list(flights)
    flights.clear()
    for flight in left:
        report("in progress at teardown", f"a transfer {flight} was still in flight at the end of the test")
