"""``quarantine.grace``: an operator's word that a lost peer is silent, where nothing proves it."""

from __future__ import annotations

import itertools
import threading
import time
from functools import partial

import attrs
import pytest
from pair import Pair, config, paired, peers, soon, until

from pdcore.config.records import Config, QuarantineConfig
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.decode import KVReceiver
from pdcore.errors import ConfigError
from pdcore.model import Deadline, KVPoll
from pdcore.prefill import KVSender


class Hung(Transfer):
    """A transfer that never ends."""

    quiescence = Quiescence.IN_FLIGHT

    def poll(self) -> TransferState:
        return TransferState.PENDING

    def wait(self, deadline: Deadline) -> TransferState:
        time.sleep(min(0.01, deadline.remaining()))
        return TransferState.PENDING


def cut_off(pair: Pair, monkeypatch: pytest.MonkeyPatch, *, by: str) -> tuple[KVSender, KVReceiver]:
    """A room whose write hangs when one side loses the other; no engine can prove anything."""
    pair.move(1, [0], [0])
    written = threading.Event()

    def hang(*_: object) -> Hung:
        written.set()
        return Hung()

    monkeypatch.setattr(pair.prefill.engine, "do_write", hang)
    monkeypatch.setattr(pair.decode.engine, "revoke", lambda *given: Quiescence.UNKNOWN)
    sender, receiver = pair.open(2)
    sender.init(2)
    receiver.send_metadata([1, 2])
    sender.send([1, 2])
    until(written.is_set)
    if by == "decode":
        (source,) = peers(pair.decode)
        pair.decode.channel.call(partial(pair.decode._lose, source.route, "a cable was pulled"))
        assert receiver.wait(soon()) is KVPoll.FAILED
    else:
        (link,) = peers(pair.prefill)
        pair.prefill.channel.call(partial(pair.prefill._lose, link.route, "a cable was pulled"))
        assert sender.wait(soon()) is KVPoll.FAILED
    return sender, receiver


def with_grace(seconds: float | None) -> Config:
    return attrs.evolve(config(), quarantine=QuarantineConfig(seconds))


def test_without_it_pages_of_a_lost_process_that_lives_stay_unsafe_and_say_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with paired(with_grace(None)) as pair:
        sender, receiver = cut_off(pair, monkeypatch, by="decode")
        until(lambda: "lives and may go on to write" in receiver.unsafe_because())
        assert pair.prefill.address in receiver.unsafe_because()
        assert not receiver.release_safe()
        unsafe = pair.decode.unsafe()
        assert (unsafe.pages, unsafe.forsaken) == (2, 0)
        assert unsafe.rooms[0].because == receiver.unsafe_because()
        receiver.clear()
        assert pair.decode.unsafe().pages == 2, "a room that was cleared holds them as well"
        sender.abort()
        assert not sender.release_safe()
        assert "decode" in sender.unsafe_because()


def test_decode_gets_its_pages_back_and_it_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with paired(with_grace(0.3)) as pair:
        _, receiver = cut_off(pair, monkeypatch, by="decode")
        until(receiver.release_safe)
        assert receiver.unsafe_because() == ""
        assert (pair.decode.unsafe().rooms, pair.decode.unsafe().forsaken) == ((), 1)
        assert "quarantine.grace of 0.3 s is over" in caplog.text
        assert "lives and may go on to write" in caplog.text


def test_prefill_gets_its_pages_back_and_takes_that_decode_process_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with paired(with_grace(0.3)) as pair:
        sender, receiver = cut_off(pair, monkeypatch, by="prefill")
        until(sender.release_safe)
        assert pair.prefill.unsafe().forsaken == 1
        receiver.abort()
        # It would be told that nothing is on its way to its pages: it may not come back.
        rooms = itertools.count(10)
        until(lambda: "takes this decode process for dead" in refusal(pair, next(rooms)))


def refusal(pair: Pair, room: int) -> str:
    """Return why decode's next request fails."""
    sender, receiver = pair.open(room)
    receiver.wait(soon())
    why = str(receiver.failure())
    receiver.clear()
    sender.clear()
    return why


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf")])
def test_it_is_a_positive_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"grace \(from code\)"):
        QuarantineConfig(seconds)
