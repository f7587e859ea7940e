"""What managers hold at one moment, as values, for Prometheus and for OpenTelemetry."""

from __future__ import annotations

import importlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from distributions import install
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pair import Pair, config, finish, paired, pools, soon
from prometheus_client import CollectorRegistry, Counter

from pdcore import (
    BootstrapError,
    BootstrapServer,
    Config,
    Deadline,
    DecodeManager,
    KVPoll,
    PrefillManager,
    RoomId,
    Timeouts,
    Topology,
    select,
)
from pdcore.errors import TelemetryError
from pdcore.events import Gauges, PeerState
from pdcore.host.descriptors import look
from pdcore.telemetry.figures import FIGURES
from pdcore.telemetry.otel import OpenTelemetryEvents
from pdcore.telemetry.prometheus import PrometheusEvents


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def until(read: Callable[[], Gauges], fits: Callable[[Gauges], bool]) -> Gauges:
    """Return the first snapshot that fits; managers wake for none of what it shows."""
    deadline = soon()
    while not fits(gauges := read()):
        assert not deadline.expired, gauges
        threading.Event().wait(0.01)
    return gauges


def rooms(gauges: Gauges) -> dict[str, int]:
    return {state.name: count for state, count in gauges.rooms.items() if count}


def test_rooms_peers_and_parked_requests_are_counted_from_opening_to_clearing() -> None:
    with paired() as pair:
        prefill, decode = pair.prefill.snapshot, pair.decode.snapshot
        assert (prefill().serving, decode().serving) == (True, True)
        assert prefill().node == pair.prefill.events.node
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(1))
        assert rooms(decode()) == {"BOOTSTRAPPING": 1}
        receiver.init()
        receiver.send_metadata([1, 2])
        assert until(prefill, lambda g: g.parked == 1).peers[PeerState.PAIRED] == 1
        assert until(decode, lambda g: g.peers[PeerState.PAIRED] == 1).rooms[KVPoll.TRANSFERRING] == 1
        sender = pair.prefill.sender(RoomId(1))
        assert (prefill().parked, rooms(prefill())) == (0, {"WAITING_FOR_INPUT": 1})
        sender.init(2)
        sender.send([1, 2])
        assert receiver.wait(soon()) is KVPoll.SUCCESS
        assert sender.wait(soon()) is KVPoll.SUCCESS
        assert rooms(prefill()) == rooms(decode()) == {"SUCCESS": 1}
        finish(sender, receiver)
        assert rooms(prefill()) == rooms(decode()) == {}
        pair.decode.close()
        assert until(prefill, lambda g: not g.peers[PeerState.PAIRED]).serving
        assert not decode().serving
    assert not prefill().serving


def test_decode_counts_pages_until_prefill_says_that_they_are_safe() -> None:
    with paired() as pair:
        pair.move(0, [1], [1])
        go_on = threading.Event()

        def stand_still() -> None:
            go_on.wait(30)

        pair.prefill.channel.call(stand_still)
        try:
            _, receiver = pair.open(1)
            receiver.send_metadata([3, 4, 5])
            receiver.abort()
            gauges = pair.decode.snapshot()
            assert (gauges.unsafe_rooms, gauges.unsafe_pages) == (1, 3)
            assert gauges.peers[PeerState.LOST] == 0
            receiver.clear()
            assert pair.decode.snapshot().unsafe_pages == 3
            assert rooms(pair.decode.snapshot()) == {}
            # Prefill's control thread stands still meanwhile, and it shows.
            assert until(pair.prefill.snapshot, lambda g: g.quiet > 0.5).serving
        finally:
            go_on.set()
        until(pair.decode.snapshot, lambda g: g.unsafe_pages == g.unsafe_rooms == 0)
        until(pair.prefill.snapshot, lambda g: g.quiet < 0.5)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    install(monkeypatch, "scripted")
    module = importlib.import_module("pd_scripted")
    module.script.reset()
    return module


def test_prefill_counts_what_is_in_quarantine(scripted: ModuleType) -> None:
    with paired(config(), backend="scripted") as pair:
        scripted.script.hold = True
        sender, receiver = pair.open(1, Deadline.after(1.0))
        sender.init(2)
        receiver.send_metadata([3, 4])
        sender.send([5, 6])
        assert sender.wait(soon()) is KVPoll.FAILED
        gauges = until(pair.prefill.snapshot, lambda g: g.quarantined > 0)
        assert (gauges.unsafe_rooms, gauges.unsafe_pages) == (1, 2)
        assert receiver.wait(soon()) is KVPoll.FAILED
        assert pair.decode.snapshot().unsafe_pages == 2
        for write in scripted.script.held:
            write.let_go()
        until(pair.prefill.snapshot, lambda g: g.quarantined == g.unsafe_pages == 0)
        until(pair.decode.snapshot, lambda g: g.unsafe_pages == 0)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"pdcore_{name}", labels)


def test_prometheus_shows_them_at_each_scrape_and_closed_managers_drop_out(
    registry: CollectorRegistry,
) -> None:
    side = {"side": "decode", "backend": "local"}
    with paired(subscribers=[PrometheusEvents(registry)]) as pair:
        _, receiver = pair.open(1)
        assert value(registry, "open_rooms", state="bootstrapping", side="prefill", backend="local") == 1
        assert value(registry, "open_rooms", state="failed", **side) == 0
        receiver.abort()
        assert value(registry, "open_rooms", state="failed", **side) == 1
        # Another manager of the same side and backend adds up.
        with DecodeManager(select("local"), pools(), Topology(), subscribers=[PrometheusEvents(registry)]):
            assert value(registry, "managers", state="serving", **side) == 2
            assert value(registry, "open_rooms", state="failed", **side) == 1
        assert value(registry, "managers", state="serving", **side) == 1
        assert value(registry, "managers", state="not_serving", **side) == 0
        names = {metric.name for metric in registry.collect() if metric.type == "gauge"}
        assert names == {f"pdcore_{figure.name}" for figure in FIGURES}
    assert value(registry, "managers", state="serving", **side) is None
    assert value(registry, "unsafe_pages", **side) is None
    assert value(registry, "descriptors", kind="socket") is not None  # the process goes on


def test_a_second_exporter_shares_the_metrics_and_nothing_is_counted_twice(
    registry: CollectorRegistry,
) -> None:
    first, second = PrometheusEvents(registry), PrometheusEvents(registry)
    with paired(subscribers=[first, second]) as pair:
        pair.move(1, [1], [2])
        for side in ("prefill", "decode"):
            labels = {"side": side, "backend": "local"}
            assert value(registry, "rooms_opened_total", **labels) == 1
            assert value(registry, "managers", state="serving", **labels) == 1
            assert (
                value(registry, "stage_seconds_count", stage="engine_start", outcome="success", **labels) == 1
            )


def test_an_exporter_that_is_subscribed_later_shows_a_manager_until_it_leaves(
    registry: CollectorRegistry,
) -> None:
    early, late = PrometheusEvents(registry), PrometheusEvents(registry)
    labels = {"side": "decode", "backend": "local"}
    with DecodeManager(select("local"), pools(), Topology()) as decode:
        leave_early, leave_late = decode.subscribe(early), decode.subscribe(late)
        assert value(registry, "managers", state="serving", **labels) == 1
        leave_early()
        assert value(registry, "managers", state="serving", **labels) == 1
        decode.receiver("127.0.0.1:1", RoomId(1)).clear()
        assert value(registry, "rooms_ended_total", outcome="aborted", **labels) == 1  # by the other
        leave_late()
        assert value(registry, "managers", state="serving", **labels) is None


def test_two_exporters_of_the_process_wide_registry_are_one() -> None:
    PrometheusEvents()
    PrometheusEvents()


def test_a_registry_where_somebody_else_has_such_a_name_is_refused_whole(registry: CollectorRegistry) -> None:
    theirs = Counter("pdcore_bytes", "theirs", registry=registry)
    with pytest.raises(TelemetryError, match="cannot be put into this Prometheus registry") as told:
        PrometheusEvents(registry)
    assert "pdcore_bytes" in told.value.there_is
    assert told.value.to_do == "hand in another one: PrometheusEvents(registry=CollectorRegistry())"
    registry.unregister(theirs)
    PrometheusEvents(registry)


def test_a_manager_that_cannot_start_is_not_shown(registry: CollectorRegistry) -> None:
    told = PrometheusEvents(registry)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(BootstrapError):
            PrefillManager(
                select("local"),
                pools(),
                Topology(),
                address,
                Config(timeouts=Timeouts(request=1.0, bootstrap=0.1)),
                [told],
            )
    assert value(registry, "managers", state="serving", side="prefill", backend="local") is None


def test_a_forked_child_shows_no_manager_of_its_parent(registry: CollectorRegistry) -> None:
    with DecodeManager(select("local"), pools(), Topology(), subscribers=[PrometheusEvents(registry)]):
        child = os.fork()
        if not child:
            labels = {"state": "serving", "side": "decode", "backend": "local"}
            os._exit(value(registry, "managers", **labels) is not None)
        assert os.waitpid(child, 0)[1] == 0


def collected(reader: InMemoryMetricReader) -> dict[str, dict[tuple[object, ...], float]]:
    data = reader.get_metrics_data()
    found: dict[str, dict[tuple[object, ...], float]] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = found.setdefault(metric.name, {})
                for point in metric.data.data_points:
                    key = tuple((point.attributes or {}).values())
                    assert key not in points, f"{metric.name} {key} is shown twice"
                    points[key] = getattr(point, "value", 0.0)
    return found


def test_opentelemetry_shows_the_same_once_whoever_makes_how_many_exporters() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    exporters = [OpenTelemetryEvents(meter_provider=provider) for _ in range(2)]
    with paired(subscribers=exporters) as pair:
        pair.open(1)
        shown = collected(reader)
        assert shown.keys() == {f"pdcore.{figure.name}" for figure in FIGURES}
        assert shown["pdcore.open_rooms"]["prefill", "local", "bootstrapping"] == 1
        assert shown["pdcore.managers"]["decode", "local", "serving"] == 1
    assert "pdcore.managers" not in collected(reader)


def test_sockets_are_told_by_their_ports_and_a_leak_by_its_state(registry: CollectorRegistry) -> None:
    def sockets(owner: str, state: str) -> float:
        found = value(registry, "sockets", owner=owner, state=state)
        assert found is not None
        return found

    with paired(subscribers=[PrometheusEvents(registry)]) as pair:
        pair.move(1, [1], [2])
        assert sockets("control", "listening") == 1
        assert sockets("control", "established") == 2  # both ends are in this process
        assert sockets("bootstrap", "listening") == 1
        before = sockets("engine_or_application", "close_wait")
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
            near.close()
            far.recv(1)
            assert sockets("engine_or_application", "close_wait") == before + 1
            assert sockets("engine_or_application", "listening") >= 1
            far.close()
        assert sockets("engine_or_application", "close_wait") == before


def test_descriptors_are_counted_by_kind(tmp_path: Path) -> None:
    before = look()
    opened = [os.eventfd(0), *os.pipe(), os.open("/dev/zero", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)]
    kinds = look().kinds
    for fd in opened:
        os.close(fd)
    grown = {kind: kinds[kind] - before.kinds[kind] for kind in kinds}
    assert grown == {
        "socket": 0,
        "pipe": 2,
        "eventfd": 1,
        "eventpoll": 0,
        "device": 1,
        "file": 1,
        "other": 0,
    }
    assert before.limit > sum(before.kinds.values())


def test_a_bootstrap_service_beside_a_manager_is_told_from_its_engine() -> None:
    with BootstrapServer() as service:
        port = int(service.address.rpartition(":")[2])
        owned = look().owned(control=(), bootstrap={port})
        assert owned["bootstrap", "listening"] == 1


def test_a_snapshot_is_there_at_any_time(registry: CollectorRegistry) -> None:
    """Scrapes while a manager opens, moves, fails and closes see figures and never an error."""
    ended, errors = threading.Event(), []

    def scrape() -> None:
        while not ended.is_set():
            try:
                list(registry.collect())
            except Exception as error:
                errors.append(error)
                return

    scraper = threading.Thread(target=scrape, name="scraper")
    scraper.start()
    try:
        with paired(subscribers=[PrometheusEvents(registry)]) as pair:
            _many(pair)
    finally:
        ended.set()
        scraper.join()
    assert not errors


def _many(pair: Pair) -> None:
    for room in range(20):
        pair.move(room, [1, 2], [3, 4])
        pair.open(1_000 + room)[1].abort()
