from __future__ import annotations

import pytest

from pdcore.managers.liveness import Heartbeats
from pdcore.wire import Connection, ConnectionEvent

GONE = "its connection is gone, and 3 heartbeats in a row are missing, 6 s"


def tracked(*keys: str, now: float = 100.0, connected: bool = True) -> Heartbeats[str]:
    beats: Heartbeats[str] = Heartbeats(interval=2.0, max_failures=3, patience=10.0)
    for key in keys:
        beats.track(key, now, connected=connected)
    return beats


def lost(beats: Heartbeats[str], now: float) -> list[str]:
    """Return who is lost, as a thread finds that looks every second."""
    beats.silent(now - 1.0)
    return [key for key, _ in beats.silent(now)]


def test_a_peer_that_is_not_heard_lives_while_it_is_connected() -> None:
    beats = tracked("a")
    assert lost(beats, 1000.0) == []
    assert beats.without_connection() == []


def test_a_peer_that_is_connected_and_not_heard_for_the_limit_is_quiet() -> None:
    beats = tracked("a", "b")
    beats.disconnected("b")
    beats.silent(105.0)
    assert beats.quiet(106.0) == []
    beats.silent(106.1)
    assert beats.quiet(106.1) == ["a"]
    assert beats.stopped() == "its process is stopped, and 3 heartbeats in a row are missing, 6 s"
    beats.heard("a", 106.2)
    assert beats.quiet(106.3) == []


def test_a_peer_without_a_connection_is_lost_once_it_was_not_heard_for_the_limit() -> None:
    beats = tracked("a")
    beats.disconnected("a")
    assert beats.without_connection() == ["a"]
    assert lost(beats, 106.0) == []
    assert beats.silent(106.1) == [("a", GONE)]


def test_a_connection_that_ends_long_after_the_last_heartbeat_ends_the_peer_at_once() -> None:
    beats = tracked("a")
    assert lost(beats, 150.0) == []
    beats.disconnected("a")
    assert beats.silent(150.1) == [("a", GONE)]


def test_a_connection_that_comes_back_in_time_saves_it() -> None:
    beats = tracked("a")
    beats.disconnected("a")
    assert lost(beats, 105.0) == []
    beats.connected("a")
    assert lost(beats, 120.0) == []
    beats.disconnected("a")
    beats.heard("a", 121.0)
    assert lost(beats, 200.0) == []


def test_only_the_lost_peer_is_named_even_if_names_begin_alike() -> None:
    beats = tracked("h:6000", "h:60001")
    beats.disconnected("h:6000")
    assert lost(beats, 107.0) == ["h:6000"]
    beats.forget("h:6000")
    assert lost(beats, 107.5) == []
    beats.disconnected("h:60001")
    assert lost(beats, 112.0) == ["h:60001"]


def test_a_peer_that_was_dialled_and_never_reached_is_named_with_the_attempts() -> None:
    beats = tracked("a", connected=False)
    for _ in range(4):
        beats.disconnected("a")
    assert lost(beats, 106.0) == []
    assert beats.silent(106.1) == [("a", "nobody takes connections there: 4 attempts in 6 s")]


def test_a_peer_that_was_never_reached_costs_no_more_than_the_patience() -> None:
    beats: Heartbeats[str] = Heartbeats(interval=10.0, max_failures=30, patience=10.0)
    beats.track("a", 100.0, connected=False)
    assert lost(beats, 109.0) == []
    assert lost(beats, 110.1) == ["a"]


def test_who_stood_still_itself_does_not_take_the_silence_for_the_peers() -> None:
    beats = tracked("a", "b")
    beats.track("b", 100.0, connected=False)
    beats.disconnected("a")
    assert beats.silent(101.0) == []
    assert beats.silent(150.0) == []  # nothing was looked at for 49 s, nor read
    assert [beats.silent(float(now)) for now in range(151, 156)] == [[]] * 5
    assert sorted(key for key, _ in beats.silent(155.1)) == ["a", "b"]


def test_a_peer_that_is_not_tracked_is_neither_heard_nor_lost() -> None:
    beats = tracked("a")
    beats.disconnected("b")
    beats.connected("b")
    assert not beats.heard("b", 101.0)
    beats.disconnected("a")
    beats.forget("a")
    beats.forget("a")
    assert not beats.heard("a", 101.0)
    assert lost(beats, 200.0) == []
    assert beats.without_connection() == []


def test_a_peer_that_comes_back_is_new() -> None:
    beats = tracked("a")
    beats.disconnected("a")
    beats.forget("a")
    beats.track("a", 200.0, connected=True)
    beats.disconnected("a")
    assert lost(beats, 206.0) == []
    assert lost(beats, 206.1) == ["a"]


def test_a_connection_that_ends_has_the_next_heartbeats_be_due_at_once() -> None:
    beats = tracked("a")
    beats.beat_due(100.0)
    assert beats.beat_due(100.5) == []
    beats.note(None, ConnectionEvent(Connection.ACCEPTED, 7, "tcp://127.0.0.1:1"))
    assert beats.beat_due(100.5) == []
    beats.note(None, ConnectionEvent(Connection.DISCONNECTED, 7, "tcp://127.0.0.1:1"))
    assert beats.beat_due(100.5) == ["a"]


@pytest.mark.parametrize(
    ("what", "connected"),
    [
        (Connection.CONNECTED, False),
        (Connection.HANDSHAKEN, True),
        (Connection.DISCONNECTED, False),
        (Connection.RETRIED, False),
    ],
)
def test_a_peer_is_connected_once_the_handshake_is_done(what: Connection, connected: bool) -> None:
    beats = tracked("a", connected=False)
    beats.note("a", ConnectionEvent(what, 0, "tcp://127.0.0.1:1"))
    assert beats.without_connection() == ([] if connected else ["a"])


def test_everybody_gets_a_heartbeat_once_per_interval() -> None:
    beats = tracked("a", "b")
    assert beats.beat_due(100.0) == ["a", "b"]
    assert beats.beat_due(100.0) == []
    assert beats.beat_due(101.9) == []
    assert beats.beat_due(102.0) == ["a", "b"]


def test_late_ticks_do_not_pile_heartbeats_up() -> None:
    beats = tracked("a")
    beats.beat_due(100.0)
    assert beats.beat_due(150.0) == ["a"]
    assert beats.beat_due(150.1) == []


def test_each_missed_heartbeat_is_named_once_until_the_peer_is_heard_again() -> None:
    beats: Heartbeats[str] = Heartbeats(interval=2.0, max_failures=3)
    beats.track("a", 0.0, connected=True)
    beats.track("b", 0.0, connected=True)
    assert beats.missed(2.9) == []  # less than half an interval late
    beats.heard("b", 3.0)
    assert beats.missed(3.1) == [("a", 1)]
    beats.heard("b", 4.0)
    assert beats.missed(4.9) == []
    assert beats.missed(7.1) == [("a", 3), ("b", 1)]
    beats.heard("a", 7.2)
    beats.forget("b")
    assert beats.missed(9.0) == []
    beats.track("b", 9.0, connected=True)
    assert beats.missed(12.1) == [("a", 1), ("b", 1)]
