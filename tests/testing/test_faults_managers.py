"""Single faults between two managers, where the moment matters; random ones are in test_state_machine.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import attrs
import pytest
from pair import config, early, fill, pools, same_pages, soon

from pdcore import BootstrapServer, Deadline, KVPoll, RoomId, select
from pdcore.testing.faults import Decision, Fault, Schedule
from pdcore.testing.faults.managers import FaultyDecode, FaultyPrefill


class Script(Schedule):
    """The n-th event of a place goes wrong as it is written here, all others go well."""

    def __init__(self, script: dict[tuple[str, int], Decision]) -> None:
        super().__init__(0)
        self._script = script

    def _decide(self, place: str, faults: object) -> Decision:
        with self._lock:
            self._passed[place] += 1
            return self._script.get((place, self._passed[place]), Decision(Fault.NONE))


@attrs.frozen
class Ends:
    """Two managers whose script is about to begin."""

    bootstrap: str
    prefill: FaultyPrefill
    decode: FaultyDecode

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = soon()
        while not holds():
            assert not deadline.expired
            self.decode.finished(Deadline.after(0.01))


@contextmanager
def ends(script: dict[tuple[str, int], Decision]) -> Iterator[Ends]:
    schedule = Script(script)
    source = pools()
    fill(source, 1)
    with ExitStack() as stack:
        bootstrap = stack.enter_context(BootstrapServer()).address
        prefill = FaultyPrefill(schedule, select("local"), source, bootstrap, config())
        stack.enter_context(prefill)
        decode = stack.enter_context(FaultyDecode(schedule, select("local"), pools(), config()))
        yield Ends(bootstrap, prefill, decode)


def test_an_old_request_that_comes_again_is_not_served_into_pages_that_were_given_away() -> None:
    script = {("decode RequestMetadata", 1): Decision(Fault.DUPLICATE, 0.3)}
    with ends(script) as pair:
        receiver = pair.decode.receiver(pair.bootstrap, RoomId(5))
        receiver.init()
        receiver.send_metadata([3])
        pair.until(lambda: early(pair.prefill, 5) > 0)
        receiver.abort()
        pair.until(receiver.release_safe)
        receiver.clear()
        pair.until(lambda: pair.prefill.channel.counts["repeated"] == 1)
        sender = pair.prefill.sender(RoomId(5), Deadline.after(0.3))
        sender.init(1)
        sender.send([1])
        assert sender.wait(soon()) is KVPoll.FAILED
        assert not any(array[3].any() for array in pair.decode.pools.arrays)


@pytest.mark.parametrize("lost", ["prefill Released", "decode Abort"])
def test_a_lost_acknowledgement_is_asked_for_again(lost: str) -> None:
    with ends({(lost, 1): Decision(Fault.DROP)}) as pair:
        receiver = pair.decode.receiver(pair.bootstrap, RoomId(5))
        receiver.init()
        receiver.send_metadata([3])
        pair.until(lambda: early(pair.prefill, 5) > 0)
        receiver.abort()
        assert not receiver.release_safe()
        pair.until(receiver.release_safe)
        assert early(pair.prefill) == 0


def test_a_lane_that_hangs_at_a_lost_peer_has_ended_when_the_manager_is_closed() -> None:
    with ends({("prefill write", 1): Decision(Fault.HANG, 1.0)}) as pair:
        sender = pair.prefill.sender(RoomId(5))
        receiver = pair.decode.receiver(pair.bootstrap, RoomId(5))
        receiver.init()
        receiver.send_metadata([3])
        sender.init(1)
        sender.send([1])
        pair.until(lambda: sender.poll() is KVPoll.TRANSFERRING)
        pair.decode.close()
        assert sender.wait(soon()) is KVPoll.FAILED
        assert not sender.release_safe()
        pair.prefill.close()
        assert sender.release_safe()
        assert not [t.name for t in threading.enumerate() if t.name.startswith("pdcore-lane")]


def test_pages_that_an_engine_raised_at_are_safe_only_when_it_is_closed() -> None:
    with ends({("prefill write", 1): Decision(Fault.RAISE)}) as pair:
        sender = pair.prefill.sender(RoomId(5))
        receiver = pair.decode.receiver(pair.bootstrap, RoomId(5))
        receiver.init()
        receiver.send_metadata([3])
        sender.init(1)
        sender.send([1])
        for side in (sender, receiver):
            assert side.wait(soon()) is KVPoll.FAILED
            assert not side.release_safe()
        pair.until(lambda: len(pair.prefill.quarantine) == 1)
        pair.prefill.close()
        assert sender.release_safe()
        pair.until(receiver.release_safe)


def test_a_late_write_keeps_pages_of_both_sides_until_it_has_landed() -> None:
    with ends({("prefill write", 1): Decision(Fault.LATE, 0.5)}) as pair:
        sender = pair.prefill.sender(RoomId(5))
        receiver = pair.decode.receiver(pair.bootstrap, RoomId(5))
        receiver.init()
        receiver.send_metadata([3])
        sender.init(1)
        sender.send([1])
        assert receiver.wait(soon()) is KVPoll.FAILED
        assert not receiver.release_safe()
        assert not sender.release_safe()
        pair.until(receiver.release_safe)
        assert sender.release_safe()
        assert same_pages(pair.prefill.pools, [1], pair.decode.pools, [3])
