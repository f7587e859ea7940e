"""What the vLLM adapter is configured with, and what it refuses. No vLLM is needed."""

from __future__ import annotations

from typing import Any

import pytest
from pdcore_vllm.config import Settings, UnsupportedError, check_engine

from pdcore import ConfigError

FITTING: dict[str, Any] = {
    "version": "0.32.0",
    "role": "kv_producer",
    "caches": ("FullAttentionSpec",),
    "context_parallel": 1,
}


def here() -> str:
    return "127.0.0.7"


@pytest.mark.parametrize(
    ("change", "there_is", "to_do"),
    [
        ({"version": "0.33.1"}, "vLLM 0.33.1; tried: 0.32.*", "install vllm==0.32.*"),
        ({"role": "kv_both"}, "kv_role 'kv_both'", "kv_producer for prefill"),
        (
            {"caches": ("FullAttentionSpec", "SlidingWindowSpec")},
            "groups FullAttentionSpec, SlidingWindowSpec; supported: one of FullAttentionSpec or MLA",
            "--no-disable-hybrid-kv-cache-manager",
        ),
        ({"caches": ("SlidingWindowSpec",)}, "groups SlidingWindowSpec", "add --disable-sliding-window"),
        ({"caches": ("MambaSpec",)}, "MambaSpec", "all have attention"),
        ({"context_parallel": 2}, "size 2", "tensor parallelism"),
    ],
)
def test_what_does_not_work_is_refused(change: dict[str, Any], there_is: str, to_do: str) -> None:
    check_engine(**FITTING)
    with pytest.raises(UnsupportedError, match="does not support this engine") as refused:
        check_engine(**{**FITTING, **change})
    assert there_is in refused.value.there_is
    assert to_do in refused.value.to_do


def test_defaults_come_from_the_engine() -> None:
    made = Settings.load({"backend": "local"}, here)
    assert made.loaded.config.backend == "local"
    assert made.loaded.config.host == "127.0.0.7"
    assert made.own == type(made.own)(60.0, 0, {})
    assert made.loaded.config.timeouts.request == 60.0
    assert made.loaded.config.timeouts.pairing == 30.0


def test_a_wildcard_is_no_address_of_the_engine() -> None:
    assert Settings.load({"backend": "local"}, lambda: "0.0.0.0").loaded.config.host == "127.0.0.1"


def test_fields_of_pdcore_may_be_nested_or_dotted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDCORE_LIVENESS_INTERVAL", "7")
    extra = {
        "backend": "local",
        "host": "127.0.0.1",
        "transfer.verify": "all",
        "liveness": {"max_failures": 5},
        "lease": 20,
        "fingerprint": {"model": "x"},
        "metrics_port": 0,
    }
    made = Settings.load(extra, here)
    assert made.loaded.config.host == "127.0.0.1"
    assert made.loaded.config.transfer.verify == "all"
    assert (made.loaded.config.liveness.max_failures, made.loaded.config.liveness.interval) == (5, 7.0)
    assert (made.own.lease, made.loaded.config.timeouts.pairing) == (20.0, 20.0)
    assert (made.loaded.config.metrics_port, made.own.fingerprint) == (0, {"model": "x"})


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({}, "backend (from --kv-transfer-config): must be named; installed: local"),
        ({"backend": "local", "transfre.verify": "all"}, "transfre"),
        ({"backend": "local", "transfer.verify": "some"}, "transfer.verify (from command line)"),
        (
            {"backend": "local", "lease": 0},
            "lease (from --kv-transfer-config)",
        ),
        ({"backend": "local", "lease": True}, "lease (from"),
        ({"backend": "local", "bootstrap_port": "1"}, "bootstrap_port (from"),
        ({"backend": "local", "metrics_port": 70000}, "metrics_port (from command line)"),
        ({"backend": "local", "fingerprint": {"model": 3}}, "fingerprint.model (from"),
    ],
)
def test_wrong_values_are_told_with_their_origin(extra: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.load(extra, here)
    assert told in str(refused.value)
