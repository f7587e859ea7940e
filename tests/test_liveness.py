from __future__ import annotations

from pdcore.liveness import Heartbeats


def tracked(*keys: str, now: float = 100.0) -> Heartbeats[str]:
    beats: Heartbeats[str] = Heartbeats(interval=2.0, max_failures=3)
    for key in keys:
        beats.track(key, now)
    return beats


def test_a_peer_is_silent_after_the_allowed_number_of_missing_heartbeats() -> None:
    beats = tracked("a")
    assert beats.silent(106.0) == []
    assert beats.silent(106.1) == ["a"]


def test_a_heartbeat_starts_the_count_anew() -> None:
    beats = tracked("a")
    assert beats.heard("a", 105.0)
    assert beats.silent(111.0) == []
    assert beats.silent(111.1) == ["a"]


def test_only_the_silent_peer_is_named_even_if_names_begin_alike() -> None:
    beats = tracked("h:6000", "h:60001")
    beats.heard("h:60001", 105.0)
    assert beats.silent(107.0) == ["h:6000"]
    beats.forget("h:6000")
    assert beats.silent(107.0) == []
    assert beats.silent(112.0) == ["h:60001"]


def test_all_silent_peers_are_found_at_once() -> None:
    assert tracked("a", "b", "c").silent(200.0) == ["a", "b", "c"]


def test_a_peer_that_is_not_tracked_is_not_heard() -> None:
    beats = tracked("a")
    assert not beats.heard("b", 101.0)
    beats.forget("a")
    beats.forget("a")
    assert not beats.heard("a", 101.0)
    assert beats.silent(200.0) == []


def test_a_peer_that_comes_back_is_new() -> None:
    beats = tracked("a")
    beats.forget("a")
    beats.track("a", 200.0)
    assert beats.silent(206.0) == []
    assert beats.silent(206.1) == ["a"]


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
    beats.track("a", 0.0)
    beats.track("b", 0.0)
    assert beats.missed(2.9) == []  # less than half an interval late
    beats.heard("b", 3.0)
    assert beats.missed(3.1) == [("a", 1)]
    beats.heard("b", 4.0)
    assert beats.missed(4.9) == []
    assert beats.missed(7.1) == [("a", 3), ("b", 1)]
    beats.heard("a", 7.2)
    beats.forget("b")
    assert beats.missed(9.0) == []
    beats.track("b", 9.0)
    assert beats.missed(12.1) == [("a", 1), ("b", 1)]
