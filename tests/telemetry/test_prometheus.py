"""Events as Prometheus metrics: what is counted, under which labels."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pair import config, paired, soon
from prometheus_client import CollectorRegistry, generate_latest
from recorder import Recorder

from pdcore import KVPoll
from pdcore.events import PeerPaired, RoomEnded
from pdcore.model import Role
from pdcore.telemetry.prometheus import PrometheusEvents

SIDES = ("prefill", "decode")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, side: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"side": side, "backend": "local", **labels})


def test_requests_bytes_and_seconds_are_counted_by_side_and_outcome(registry: CollectorRegistry) -> None:
    told = Recorder()
    with paired(config(interval=30.0), subscribers=[PrometheusEvents(registry), told]) as pair:
        pair.move(1, [1, 2], [3, 4])
        pair.move(2, [5], [6])
        sender, receiver = pair.open(3)
        receiver.send_metadata([1])
        receiver.abort()
        assert sender.wait(soon()) is KVPoll.FAILED
        told.wait_for(RoomEnded, Role.PREFILL, lambda e: e.room == 3)
        page = pair.prefill.pools.layout.page_bytes
    for side in SIDES:
        assert value(registry, "pdcore_rooms_opened_total", side) == 3
        assert value(registry, "pdcore_rooms_ended_total", side, outcome="success") == 2
        assert value(registry, "pdcore_rooms_ended_total", side, outcome="aborted") == 1
        assert value(registry, "pdcore_peer_events_total", side, event="paired") == 1
        for part in ("bootstrap", "waiting", "transfer", "total"):
            assert value(registry, "pdcore_request_seconds_count", side, part=part) == 2
        assert (
            value(registry, "pdcore_stage_seconds_count", side, stage="engine_start", outcome="success") == 1
        )
    assert value(registry, "pdcore_stage_seconds_count", "prefill", stage="plan", outcome="success") == 2
    assert value(registry, "pdcore_bytes_total", "decode") == 3 * page
    assert value(registry, "pdcore_bytes_total", "prefill") == sum(
        e.metrics.nbytes for e in told.of(RoomEnded, Role.PREFILL) if e.failure is None
    )


def test_no_label_names_a_room_or_a_peer(registry: CollectorRegistry) -> None:
    told = Recorder()
    with paired(subscribers=[PrometheusEvents(registry), told]) as pair:
        for room in range(50):
            pair.move(room, [1], [1])
        pair.decode.close()
        told.wait_for(PeerPaired, Role.PREFILL)
    labels = {name for m in registry.collect() for sample in m.samples for name in sample.labels}
    assert labels == {"side", "backend", "outcome", "part", "stage", "event", "le", "state", "kind", "owner"}
    assert len(generate_latest(registry).splitlines()) < 500


def test_without_the_library_the_import_says_which_command_installs_it() -> None:
    for module, library, extra in (
        ("pdcore.telemetry.prometheus", "prometheus_client", "prometheus"),
        ("pdcore.telemetry.otel", "opentelemetry", "otel"),
    ):
        code = (
            f"import sys; sys.modules[{library!r}] = None\n"
            "from pdcore.errors import MissingExtraError\n"
            f"try: import {module}\n"
            "except MissingExtraError as error: print(error)\n"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert run.stdout.startswith(f"{module} cannot be imported\n  there is: import of {library}"), (
            run.stderr
        )
        assert run.stdout.endswith(f"  to do: pip install 'pdcore[{extra}]'\n")
