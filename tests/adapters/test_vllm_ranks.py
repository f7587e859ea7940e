"""How the vLLM adapter starts a rank: its bootstrap service, its metrics, what it tells the others."""

from __future__ import annotations

import logging
import re
import socket
import urllib.request
from typing import Any

import pytest
from pair import MHA, pools
from pdcore_vllm.config import Settings
from pdcore_vllm.managers import start

from pdcore import BootstrapError, Config, Topology


def settings(**extra: Any) -> Settings:
    return Settings.load({"backend": "local", **extra}, lambda: "127.0.0.1")


def test_the_first_rank_tells_the_others_where_the_service_is_or_why_there_is_none() -> None:
    told: list[tuple[str, str]] = []

    def agree(said: tuple[str, str]) -> tuple[str, str]:
        told.append(said)
        return said

    manager, address, company = start(settings(), pools(MHA, None), Topology(), agree, 0)
    with company:
        assert told == [(address, "")]
        assert manager.topology == Topology()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BootstrapError, match=f"cannot listen on 127.0.0.1:{port}"):
            start(settings(bootstrap_port=port - 1), pools(MHA, None), Topology(), agree, 1)
    address, why = told[-1]
    assert address == ""
    assert f"127.0.0.1:{port}" in why, "the port of the second data-parallel engine"


def test_another_rank_does_not_start_without_the_first_ones_service() -> None:
    second = Topology(tp_size=2, tp_rank=1)
    with pytest.raises(BootstrapError, match="the first rank has no bootstrap service") as refused:
        start(settings(), pools(MHA, None), second, lambda told: ("", "port 1 is taken"), 0)
    assert refused.value.there_is == "port 1 is taken"


def test_ports_are_counted_up_by_rank_and_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings(metrics_port=0, **{"control.port": 40_000, "advertise": "127.0.0.1:41000"})
    asked: list[Config] = []

    def refuse(*parts: object) -> None:
        asked.extend(part for part in parts if isinstance(part, Config))
        raise InterruptedError

    monkeypatch.setattr("pdcore_vllm.managers.DecodeManager", refuse)
    with pytest.raises(InterruptedError):
        start(made, pools(MHA, None), Topology(tp_size=2, tp_rank=1), None, 3)
    (config,) = asked
    assert (config.control.port, config.metrics_port, config.advertise) == (40_007, 0, "127.0.0.1:41007")


def test_a_rank_serves_pdcores_metrics_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pdcore.metrics"):
        _, _, company = start(settings(metrics_port=0), pools(MHA, None), Topology(), None, 0)
    with company:
        (address,) = re.findall(r"http://\S+/metrics", caplog.text)
        with urllib.request.urlopen(address, timeout=10) as page:
            assert b"pdcore_open_rooms{" in page.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=10)
