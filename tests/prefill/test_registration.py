"""Prefill that starts before its bootstrap service, and what ``health()`` says of the registration."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from pair import Pair, config, paired, pools, soon

import pdcore.managers.health
from pdcore import (
    Announce,
    ArgumentError,
    AuthenticationError,
    BootstrapServer,
    Config,
    DecodeManager,
    DPChoice,
    LivenessConfig,
    PrefillManager,
    RoomId,
    Timeouts,
    Topology,
    select,
)
from pdcore.events import Event, Stage, StageEnded


class Told:
    """Hears how announcements end."""

    def __init__(self) -> None:
        self.ends: list[BaseException | None] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageEnded) and event.stage is Stage.ANNOUNCE:
            self.ends.append(event.error)


@pytest.fixture
def port() -> int:
    """A port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def prefill(port: int, told: Told) -> Iterator[PrefillManager]:
    with started(f"127.0.0.1:{port}", told) as manager:
        yield manager


def started(address: str, *told: Told, cfg: Config | None = None) -> PrefillManager:
    return PrefillManager(
        select("local"),
        pools(),
        Topology(),
        address,
        cfg or config(),
        told,
        announce=Announce.BACKGROUND,
    )


def until(fits: Callable[[], bool], say: Callable[[], object]) -> None:
    deadline = soon()
    while not fits():
        assert not deadline.expired, say()
        threading.Event().wait(0.01)


def ails(manager: PrefillManager | DecodeManager, words: str) -> None:
    """Wait until health names a problem."""
    until(lambda: words in str(manager.health()), manager.health)
    assert not manager.health().ok


def well(manager: PrefillManager | DecodeManager) -> None:
    until(lambda: manager.health().ok, manager.health)
    assert str(manager.health()) == "ok"


def test_prefill_starts_before_its_service_and_serves_once_that_is_there(
    prefill: PrefillManager, port: int, told: Told
) -> None:
    where = f"127.0.0.1:{port}"
    ails(prefill, f"not registered at {where}: asked ")
    assert prefill.health().problems[0].endswith(": Connection refused")
    assert prefill.snapshot().registered is False
    prefill.register_dp_rank(RoomId(7))  # told once the service is there
    assert told.ends == []
    with BootstrapServer(port=port) as service:
        well(prefill)
        assert prefill.snapshot().registered is True
        with DecodeManager(select("local"), pools(), Topology(), config()) as decode:
            assert decode.health().ok
            assert decode.snapshot().registered is None
            pair = Pair(service, prefill, decode)
            pair.move(1, [1, 2], [3, 4])
            receiver = decode.receiver(where, RoomId(7))
            receiver.init(DPChoice.QUERY)
            prefill.sender(RoomId(7)).init(1)
            receiver.send_metadata([1])
            until(lambda: bool(prefill.busy()), prefill.snapshot)
        assert told.ends == [None]


def test_a_refused_registration_is_told_once_and_tried_again(
    prefill: PrefillManager, port: int, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    with BootstrapServer(port=port, auth_key="k" * 32):
        ails(prefill, "requires its key")
        threading.Event().wait(0.5)  # it asks again meanwhile
        (logged,) = [r.getMessage() for r in caplog.records if r.name == "pdcore.prefill"]
        assert f"not registered yet at the bootstrap service 127.0.0.1:{port}, trying again: " in logged
        (error,) = told.ends
        assert isinstance(error, AuthenticationError)
    with caplog.at_level(logging.INFO), BootstrapServer(port=port):
        well(prefill)
        assert f"registered at the bootstrap service 127.0.0.1:{port}" in caplog.text


def test_a_manager_that_is_closed_while_it_announces_ends_at_once() -> None:
    patient = Config(timeouts=Timeouts(shutdown=600.0), liveness=LivenessConfig(interval=100.0))
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and never answers
        prefill = started(f"127.0.0.1:{mute.getsockname()[1]}", cfg=patient)
        connection, _ = mute.accept()
        with connection:
            ails(prefill, "it has not answered yet")
            prefill.close()
    assert prefill.health().problems == ("the prefill manager is closed",)


def test_a_lease_that_runs_out_is_told_and_a_new_service_learns_of_the_rank() -> None:
    cfg = config(interval=0.05, max_failures=6)
    with BootstrapServer() as first:
        prefill = started(first.address, cfg=cfg)
        well(prefill)
    with prefill:
        ails(prefill, f"the lease at {first.address} has run out: asked ")
        assert prefill.snapshot().registered is False
        with BootstrapServer(port=int(first.address.rpartition(":")[2])):
            well(prefill)


def test_a_rank_that_a_newer_process_took_says_so() -> None:
    with paired(config(interval=0.05)) as pair:
        assert pair.prefill.health().ok
        with started(pair.bootstrap.address, cfg=config(interval=0.05)) as newer:
            well(newer)
            ails(pair.prefill, f"not renewed at {pair.bootstrap.address}: incarnation ")
            assert "was replaced by a newer one of the same rank" in str(pair.prefill.health())
            assert newer.health().ok


def test_a_control_thread_that_stands_still_or_has_ended_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pdcore.managers.health, "STUCK", 0.3)
    with paired() as pair:
        go_on = threading.Event()

        def stand_still() -> None:
            go_on.wait(30)

        pair.decode.channel.call(stand_still)
        try:
            ails(pair.decode, "the control thread stands still for 0.")
        finally:
            go_on.set()
        well(pair.decode)
        pair.decode.channel.close(soon())
        assert pair.decode.health().problems == ("the control thread has ended: no peer is heard",)
    assert pair.decode.health().problems == ("the decode manager is closed",)


def test_how_to_announce_is_one_of_two() -> None:
    with pytest.raises(ArgumentError, match="announce is no Announce"):
        PrefillManager(
            select("local"),
            pools(),
            Topology(),
            "127.0.0.1:1",
            announce="background",  # type: ignore[arg-type]  # that is what is tested
        )
