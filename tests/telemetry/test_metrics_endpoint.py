"""A manager's own Prometheus endpoint: it serves while the manager lives, and is missed by nobody."""

from __future__ import annotations

import logging
import socket
import urllib.error
import urllib.request
from http.client import HTTPResponse

import attrs
import pytest
from pair import MHA, config, paired, pools

import pdcore
from pdcore import Config, ConfigError, DecodeManager, Topology
from pdcore.telemetry.endpoint import MetricsEndpoint, endpoints


def scraped(address: str, path: str = "/metrics", accept: str = "") -> tuple[str, str]:
    asked = urllib.request.Request(f"http://{address}{path}", headers={"Accept": accept})
    with urllib.request.urlopen(asked, timeout=10) as page:
        assert isinstance(page, HTTPResponse)
        return page.read().decode(), page.headers["Content-Type"]


def address_in(text: str) -> str:
    return text.partition("http://")[2].partition("/metrics")[0]


def test_a_manager_serves_its_metrics_until_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pdcore.metrics"):
        manager = DecodeManager(pdcore.select("local"), pools(MHA, None), Topology(), Config(metrics_port=0))
    with manager:
        address = address_in(caplog.text)
        text, kind = scraped(address)
        assert "pdcore_peers{" in text
        assert kind.startswith("text/plain")
        assert scraped(address, accept="application/openmetrics-text; version=1.0.0")[0].endswith("# EOF\n")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            scraped(address, "/")
    with pytest.raises(OSError, match="refused"):
        scraped(address)


def test_requests_are_counted_from_the_first_one_on() -> None:
    endpoint = MetricsEndpoint("127.0.0.1", 0)
    with paired(subscribers=[endpoint]) as pair:  # both managers; the first one starts and ends it
        pair.move(1, [1], [2])
        text, _ = scraped(endpoint.address)
        assert 'pdcore_rooms_ended_total{backend="local",outcome="success",side="prefill"} 1.0' in text
        assert 'side="decode"' in text
    assert endpoint.address == ""
    assert endpoint.failure is None


def test_a_port_that_is_taken_is_said_and_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with paired(attrs.evolve(config(), metrics_port=port)) as pair:  # of both managers
            pair.move(1, [1], [2])
            assert pair.prefill.health().ok
    assert (
        caplog.text.count(f"the metrics of a manager are served nowhere: cannot listen on 127.0.0.1:{port}")
        == 2
    )
    assert "Address already in use; to do: choose a free port as metrics_port" in caplog.text


def test_a_host_that_is_none_is_said_with_the_reason() -> None:
    endpoint = MetricsEndpoint("192.0.2.1", 0)
    with DecodeManager(pdcore.select("local"), pools(MHA, None), Topology(), subscribers=[endpoint]):
        assert endpoint.address == ""
    assert endpoint.failure is not None
    assert "192.0.2.1' is not an address of this machine" in endpoint.failure.there_is


def test_without_a_port_nothing_is_served() -> None:
    assert endpoints(Config()) == []
    with pytest.raises(ConfigError, match=r"metrics_port.*0\.\.65535, is 65536"):
        Config(metrics_port=65_536)
