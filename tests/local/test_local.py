from __future__ import annotations

import sys

import pytest

from pdcore.contract.backend import AuxRequest
from pdcore.local import plugin
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import AuxTransport, Certainty


def test_the_probe_finds_this_machine_ready() -> None:
    assert plugin.probe().ready


def test_a_forbidden_system_call_is_a_reason_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise PermissionError(1, "process_vm_writev: Operation not permitted")

    monkeypatch.setattr(plugin, "self_test", forbidden)
    verdict = plugin.probe()
    assert not verdict.ready
    assert verdict.reason.endswith("process_vm_writev: Operation not permitted")
    assert "--cap-add SYS_PTRACE" in verdict.fix


def test_another_operating_system_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert plugin.probe().reason == "process_vm_writev is Linux's, this is darwin"


@pytest.mark.parametrize(
    ("scope", "capable", "ready"),
    [(0, False, True), (1, False, True), (2, False, False), (2, True, True), (3, True, False)],
)
def test_the_machines_ptrace_scope_is_judged(scope: int, *, capable: bool, ready: bool) -> None:
    verdict = plugin.judge_yama(scope, capable=capable)
    assert verdict.ready is ready
    assert ready or f"yama ptrace_scope is {scope}" in verdict.reason


def test_aux_rows_travel_through_the_engine() -> None:
    engine = LocalEngine(LocalOptions())
    request = AuxRequest("process_vm_writev", None, LocalOptions(), engine.capabilities)
    assert plugin.pd_aux_transport(request).transport is AuxTransport.ENGINE
    engine.close()


def test_the_transport_is_verified() -> None:
    engine = LocalEngine(LocalOptions())
    assert engine.effective_transport.certainty is Certainty.VERIFIED
    engine.close()
