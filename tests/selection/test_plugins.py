from __future__ import annotations

import logging

import pytest
from distributions import install

from pdcore.contract.backend import (
    AuxRequest,
    AuxRoute,
    NoOptions,
    ProtocolChoice,
    ProtocolRequest,
    ProtocolVerdict,
    StateRequest,
    Variant,
)
from pdcore.contract.engine import EngineCapabilities
from pdcore.errors import ContractError, PluginError
from pdcore.layout.kv import Attention, StateComponent
from pdcore.model import Incarnation, PeerIdentity, Role
from pdcore.pairing.topology import Topology
from pdcore.selection.discovery import Candidate
from pdcore.selection.plugins import BackendPlugin, load_backend, load_observer


def candidate(name: str, module: str = "") -> Candidate:
    return Candidate(name, f"pd-{name.replace('_', '-')}", "1.0.0", module or f"pd_{name}")


def loaded(monkeypatch: pytest.MonkeyPatch, name: str) -> BackendPlugin:
    install(monkeypatch, name)
    return load_backend(candidate(name))


@pytest.mark.parametrize(
    ("name", "happened", "there_is", "to_do"),
    [
        (
            "import_error",
            "pd_import_error cannot be imported",
            "ImportError: libfixture.so.1: cannot open shared object file",
            "pip install --force-reinstall pd-import-error, "
            "or see the traceback of: python -c 'import pd_import_error'",
        ),
        (
            "exits",
            "pd_exits cannot be imported",
            "SystemExit: 3",
            "pip install --force-reinstall pd-exits, or see the traceback of: python -c 'import pd_exits'",
        ),
        (
            "wrong_argument",
            "pd_wrong_argument does not fit the hook contract",
            "pd_init_engine has a wrong argument node (it takes: request)",
            "pip install --upgrade pdcore pd-wrong-argument",
        ),
        (
            "unknown_hook",
            "pd_unknown_hook does not fit the hook contract",
            "unknown hook pd_choose_protocols; did you mean 'pd_choose_protocol'?",
            "pip install --upgrade pdcore pd-unknown-hook",
        ),
        (
            "no_engine_hook",
            "pd_no_engine_hook does not fit the hook contract",
            "pd_init_engine is missing (is it decorated with @hookimpl?)",
            "pip install --upgrade pdcore pd-no-engine-hook",
        ),
    ],
)
def test_a_module_that_cannot_be_loaded_is_an_error_in_three_parts(
    monkeypatch: pytest.MonkeyPatch, name: str, happened: str, there_is: str, to_do: str
) -> None:
    with pytest.raises(PluginError) as caught:
        loaded(monkeypatch, name)
    assert str(caught.value) == f"{happened}\n  there is: {there_is}\n  to do: {to_do}"


def test_a_module_that_does_not_exist_is_an_error_too() -> None:
    with pytest.raises(PluginError, match="No module named 'pd_absent'"):
        load_backend(candidate("absent"))


def test_an_interrupt_while_importing_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "pd_interrupted.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(KeyboardInterrupt):
        load_backend(candidate("interrupted"))


def test_defaults_fill_in_for_hooks_that_a_backend_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = loaded(monkeypatch, "no_library")
    spec = plugin.backend()
    only = plugin.choose_protocol(ProtocolRequest(spec, None, NoOptions(), {}))
    assert only == ProtocolChoice("memory", (ProtocolVerdict("memory", True, "the only one declared"),))
    variant = Variant("no_library_tcp", "tcp")
    of_variant = plugin.choose_protocol(ProtocolRequest(spec, variant, NoOptions(), {}))
    assert of_variant.protocol == "tcp"
    assert plugin.aux_transport(AuxRequest("memory", None, NoOptions(), EngineCapabilities())) == AuxRoute()
    component = StateComponent("mamba", 1, ())
    request = StateRequest(component, component, (), (), Topology(), Topology(), Attention.HEADS)
    assert plugin.transfer_state(request) is None
    plugin.heartbeat_success(PeerIdentity(Role.DECODE, Incarnation("0" * 32), "127.0.0.1:1"))


def test_a_backend_with_several_protocols_must_choose_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "good")
    plugin = loaded(monkeypatch, "no_library")
    spec = load_backend(candidate("good")).backend()
    with pytest.raises(ContractError) as caught:
        plugin.choose_protocol(ProtocolRequest(spec, None, NoOptions(), {}))
    assert str(caught.value) == (
        "backend 'good' does not choose its protocol\n"
        "  there is: it declares rdma, tcp\n"
        "  to do: declare exactly one protocol, or implement pd_choose_protocol"
    )


def test_an_answer_of_a_wrong_type_is_a_broken_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = loaded(monkeypatch, "wrong_type")
    with pytest.raises(ContractError) as caught:
        plugin.choose_protocol(ProtocolRequest(plugin.backend(), None, NoOptions(), {}))
    assert str(caught.value) == (
        "pd-wrong-type 1.0.0: its pd_choose_protocol returned a wrong type\n"
        "  there is: str, where ProtocolChoice is due\n"
        "  to do: report it to the authors of pd-wrong-type"
    )


def test_a_hook_that_raises_is_a_broken_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = loaded(monkeypatch, "good")
    with pytest.raises(ContractError) as caught:
        plugin.choose_protocol(ProtocolRequest(plugin.backend(), None, NoOptions(), {}))
    assert caught.value.happened == "pd-good 1.0.0: its pd_choose_protocol failed"
    assert caught.value.there_is.startswith("AssertionError")


def test_an_observer_is_told_changes_nothing_and_its_failures_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, "observer_raises", "no_library")
    observer = load_observer(candidate("raises", "pd_observer_raises"))
    plugin = load_backend(candidate("no_library"), [observer])
    request = ProtocolRequest(plugin.backend(), None, NoOptions(), {})
    with caplog.at_level(logging.WARNING, "pdcore.observers"):
        for _ in range(3):
            assert plugin.choose_protocol(request).protocol == "memory"
    assert [record.getMessage() for record in caplog.records] == [
        "observer 'raises' failed in pd_choose_protocol and is told on nevertheless (logged once): "
        "RuntimeError: the observer is broken"
    ]
    route = plugin.aux_transport(AuxRequest("memory", None, NoOptions(), EngineCapabilities()))
    assert route == AuxRoute()
    import pd_observer_raises

    assert pd_observer_raises.seen[-4:] == ["choose for no_library"] * 3 + ["aux"]


def test_an_observer_that_cannot_be_imported_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "observer_broken")
    with pytest.raises(PluginError, match="RuntimeError: no such thing"):
        load_observer(candidate("broken", "pd_observer_broken"))


WRAPPER = """
import pluggy

@pluggy.HookimplMarker("pdcore")(wrapper=True)
def pd_aux_transport(request):
    return (yield)
"""


def test_a_hook_wrapper_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("wrapper")
    (folder / "pd_wrapper.py").write_text(WRAPPER)
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(PluginError, match="pd_aux_transport is a wrapper"):
        load_observer(candidate("wrapper"))
