"""What a log holds reaches the same state again, also of a file; what it dropped leaves a gap and no more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import attrs
import numpy as np
import pytest

from pdcore.errors import ArgumentError, FailureCode, KVTransferError
from pdcore.model import Generation, Incarnation, PeerIdentity, Role, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.plan import index_array
from pdcore.protocol import stimuli as s
from pdcore.protocol.actions import Action
from pdcore.protocol.chunk import delivery_id, generation_of
from pdcore.protocol.history import transcript
from pdcore.protocol.history.log import Recording, StimulusLog, history
from pdcore.protocol.history.picture import differences, picture
from pdcore.protocol.history.replay import Replay
from pdcore.protocol.machine import Machine, Settings
from pdcore.protocol.peer import Fit
from pdcore.testing.sim import node, router
from pdcore.testing.sim.world import World
from pdcore.wire import Packed, Route

MOST = 1_000_000
CLOSED = KVTransferError(FailureCode.ABORTED, "it closed", "so", "-")


class Remembering(StimulusLog):
    """A log that knows of which ids it has ever heard, by the number of the entry."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.ids: dict[int, RoomId] = {}

    def note(self, stimulus: s.Stimulus, moment: float, *, acted: bool) -> None:
        super().note(stimulus, moment, acted=acted)
        what = stimulus.message if isinstance(stimulus, s.Heard) else stimulus
        if (room := getattr(what, "room", None)) is not None:
            self.ids[self._number] = room

    def dropped(self) -> set[RoomId]:
        """Return the ids of which it has dropped something."""
        kept = {entry.number for entry in self.entries()}
        return {room for number, room in self.ids.items() if number not in kept}


class Logged:
    """Machines that note what they handle, of all nodes of the worlds that run meanwhile."""

    def __init__(self, most: int) -> None:
        self.made: list[tuple[Machine, Remembering, PeerDescription, Settings]] = []
        self._most = most

    def make(self, ours: PeerDescription, fit: Fit, settings: Settings) -> Machine:
        log = Remembering(self._most)
        assert fit.introduce is not None
        noted = Fit(log.answering(fit.introduce), log.answering(fit.suits), log.answering(fit.covers))
        machine = _Noting(ours, noted, settings)
        _LOGS[id(machine)] = log
        self.made.append((machine, log, ours, settings))
        return machine

    def recordings(self) -> Iterator[Recording]:
        for machine, log, ours, settings in self.made:
            yield log.recording(ours, settings, picture(machine))


_LOGS: dict[int, StimulusLog] = {}


class _Noting(Machine):
    def handle(self, stimulus: s.Stimulus, now: float) -> list[Action]:
        acted = True
        try:
            actions = super().handle(stimulus, now)
            acted = bool(actions)
            return actions
        finally:
            _LOGS[id(self)].note(stimulus, now, acted=acted)


def worlds(monkeypatch: pytest.MonkeyPatch, seeds: range, most: int = MOST, rooms: int = 60) -> Logged:
    """Run worlds; return what their nodes noted."""
    logged = Logged(most)
    monkeypatch.setattr(node, "Machine", logged.make)
    for seed in seeds:
        World(seed, rooms).run()
    return logged


def test_the_same_stimuli_reach_the_same_state_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    for recording in worlds(monkeypatch, range(300, 306)).recordings():
        written = list(transcript.write(recording))
        assert len(written) == len(recording.entries) + 1
        again = transcript.read(written)
        assert again.missing == 0
        assert list(differences(recording.state, again.state)) == []
        assert list(differences(recording.state, picture(Replay(again).run()))) == []
        count += len(again.entries)
    assert count > 5_000


def test_a_machine_in_the_midst_of_its_rooms_is_reached_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = Logged(MOST)
    monkeypatch.setattr(node, "Machine", logged.make)
    world = World(310, 200)
    rooms = 0
    for _ in range(12):
        for _ in range(150):
            world.clock.step()
        for recording in logged.recordings():
            rooms += sum(name.startswith("room ") for name in recording.state)
            replayed = Replay(transcript.read(transcript.write(recording))).run()
            assert list(differences(recording.state, picture(replayed))) == []
    assert rooms > 50


def test_what_a_log_dropped_leaves_a_gap_that_rooms_of_new_ids_do_not_notice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged = Logged(200)
    monkeypatch.setattr(router.Router, "_may_come_again", lambda self, request: False)
    monkeypatch.setattr(node, "Machine", logged.make)
    world = World(320, 400)
    looked_at = 0
    for _ in range(30):
        for _ in range(150):
            world.clock.step()
        for (_, log, *_), recording in zip(logged.made, logged.recordings(), strict=True):
            if not recording.missing:
                continue
            again, dropped = picture(Replay(recording).run()), log.dropped()
            for what in (entry.stimulus for entry in recording.entries):
                if isinstance(what, s.OpenSend | s.OpenReceive) and what.room not in dropped:
                    room = f"room {what.room} of generation {what.generation}"
                    if room in recording.state and room in again:  # else one of them has forgotten it
                        assert list(differences(recording.state[room], again[room])) == []
                        looked_at += 1
    assert looked_at > 50


def test_a_planted_difference_is_told() -> None:
    one = {"a": [1, {"b": None}], "only": 1}
    other = {"a": [1, {"b": 2}], "another": 1}
    assert list(differences(one, other)) == [
        "a[1].b: None and 2",
        "only: only in the first",
        "another: only in the second",
    ]


def test_a_log_is_bounded_in_entries_and_bytes_and_ticks_push_no_room_out() -> None:
    log = StimulusLog(most=10, most_bytes=5_000)
    log.note(s.OpenSend(RoomId(1), Generation(1), 9.0), 0.0, acted=True)
    for n in range(100):
        log.note(s.Tick(), float(n), acted=False)
    entries = log.entries()
    assert (len(entries), entries[0].number, entries[-1].number) == (11, 1, 101)
    for _ in range(9):
        log.note(s.Supply(Generation(1), index_array(range(100), "pages")), 0.0, acted=True)
    kept = [entry for entry in log.entries() if isinstance(entry.stimulus, s.Supply)]
    assert len(kept) == 6
    assert [entry.number for entry in kept] == list(range(105, 111))


def test_the_entries_of_what_goes_packed_count_in_a_log_on_either_side() -> None:
    columns = np.zeros(100, np.int64), np.arange(101), np.zeros(100, np.int64), np.ones(100, np.int64)
    packed = Packed(RoomId(1), Generation(1), 0, 1, *columns)
    delivery, route = delivery_id(Generation(1), 1), Route(b"decode")
    identity = PeerIdentity(Role.PREFILL, Incarnation("one"), "here")
    for stimulus in (
        s.SlotWritten(delivery, route, identity, packed),
        s.BytesUnpacked(Generation(1), identity, packed),
        s.Heard(route, packed),
    ):
        log = StimulusLog(most=10, most_bytes=10_000)
        for _ in range(9):
            log.note(stimulus, 0.0, acted=True)
        assert [entry.number for entry in log.entries()] == [7, 8, 9]


def test_the_history_of_a_room_is_all_that_was_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = set()
    for recording in worlds(monkeypatch, range(330, 334)).recordings():
        opening = s.OpenSend | s.OpenReceive
        rooms = {e.stimulus.room for e in recording.entries if isinstance(e.stimulus, opening)}
        for room in itertools.islice(rooms, 5):
            told |= {type(entry.stimulus) for entry in history(recording.entries, room)}
    assert {s.OpenSend, s.AnnouncePages, s.Supply, s.Heard, s.DeliveryEnded, s.DeliveryDrained} <= told
    assert {s.SlotWritten, s.BytesUnpacked} <= told
    assert s.Tick not in told


def test_a_delivery_tells_its_room() -> None:
    assert generation_of(delivery_id(Generation(2**40), 2**32 - 1)) == 2**40


@pytest.mark.parametrize(
    ("spoil", "there_is"),
    [
        (lambda lines: [], "it is empty"),
        (lambda lines: [b"hello\n"], "line 1: "),
        (lambda lines: [lines[0], b'{"number":1}\n'], "line 2: "),
        (lambda lines: [lines[0].replace(b'"version":1', b'"version":9', 1)], "version 9, here 1"),
    ],
    ids=["empty", "no recording", "a line of something else", "another version"],
)
def test_what_is_no_recording_is_refused(
    spoil: object, there_is: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = next(worlds(monkeypatch, range(340, 341), rooms=2).recordings())
    assert callable(spoil)
    with pytest.raises(ArgumentError, match="this is no recording of pdcore") as told:
        transcript.read(spoil(list(transcript.write(recording))))
    assert told.value.there_is.startswith(there_is)


def test_what_a_machine_raises_is_a_step_of_its_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = Logged(MOST)
    monkeypatch.setattr(node, "Machine", logged.make)
    world = World(350, 3)
    machine = next(iter(world.nodes.values())).machine
    opens = s.OpenSend(RoomId(5), Generation(77), 1e9)
    machine.handle(opens, world.clock.now)
    with pytest.raises(Exception, match="room 5 is open already"):
        machine.handle(attrs.evolve(opens, generation=Generation(78)), world.clock.now)
    machine.handle(s.Close(CLOSED), world.clock.now)
    recording = next(iter(logged.recordings()))
    steps = list(Replay(transcript.read(transcript.write(recording))).steps())
    assert [bool(step.actions) for step in steps] == [True, False, True]
    assert "room 5 is open already" in str(steps[1].raised)
