"""How SGLang gets to know pdcore's names, and how it ends where it cannot."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pdcore_sglang import plugin
from pdcore_sglang.handles import PdcoreReceiver, PdcoreSender
from pdcore_sglang.manager import PdcoreManager
from pdcore_sglang.names import backend_of
from pdcore_sglang.server import PdcoreBootstrapServer
from sglang.srt.arg_groups import choices, model_override_base, overrides
from sglang.srt.disaggregation import utils
from sglang.srt.disaggregation.utils import KVClassType, TransferBackend
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.server_args import ServerArgs

from pdcore import BootstrapError

Hooks = dict[str, Callable[..., Any]]


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooks]:
    """The plugin, activated in an SGLang of a version that it knows; what it hooks into."""
    found: Hooks = {}
    monkeypatch.setattr(plugin, "version", lambda _: "0.5.23.post1")
    monkeypatch.setattr(HookRegistry, "register", lambda target, hook, _: found.update({target: hook}))
    added: list[str] = []
    monkeypatch.setattr(choices, "add_disagg_transfer_backend_choices", added.extend)
    monkeypatch.setattr(choices, "DISAGG_TRANSFER_BACKEND_CHOICES", added)
    monkeypatch.setattr(utils, "get_kv_class", utils.get_kv_class)
    plugin.activate()
    yield found
    del TransferBackend._missing_


def apply(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as SGLang's registry does with a hook that stands around a function."""
    original, hook = utils.get_kv_class, hooks[plugin.GET_KV_CLASS]
    monkeypatch.setattr(utils, "get_kv_class", lambda *args: hook(original, *args))


def test_every_installed_backend_has_a_name_and_classes(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(hooks, monkeypatch)
    patience = "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT"
    monkeypatch.setenv(patience, "")
    monkeypatch.delenv(patience)
    assert {"pdcore_local", "pdcore_mooncake_tcp", "pdcore_nixl_tcp"} <= set(
        choices.DISAGG_TRANSFER_BACKEND_CHOICES
    )
    local = TransferBackend("pdcore_local")
    assert TransferBackend("pdcore_local") is local
    assert float(os.environ[patience]) > 1e6
    assert (local.value, backend_of(local.value)) == ("pdcore_local", "local")
    made = [utils.get_kv_class(local, kind) for kind in KVClassType if kind is not KVClassType.KVARGS]
    assert made == [PdcoreManager, PdcoreSender, PdcoreReceiver, PdcoreBootstrapServer]
    for theirs in ((local, KVClassType.KVARGS), (TransferBackend.NIXL, KVClassType.MANAGER)):
        with pytest.raises(NotImplementedError):  # SGLang's own, of which the stand-in has no body
            utils.get_kv_class(*theirs)
    with pytest.raises(ValueError, match="pdcore_nothing"):
        TransferBackend("pdcore_nothing")


def test_a_hook_that_is_not_in_place_ends_the_process(hooks: Hooks) -> None:
    with pytest.raises(SystemExit, match=r"the hook of pdcore-sglang is not in place.*\n.*SGLang's own"):
        TransferBackend("pdcore_mooncake")


@pytest.mark.parametrize("installed", ["0.5.22", "0.6.0", "none"])
def test_another_sglang_is_refused_if_pdcore_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, installed: str
) -> None:
    monkeypatch.setattr(plugin, "version", lambda _: installed)
    monkeypatch.setattr(sys, "argv", ["launch_server", "--disaggregation-transfer-backend", "mooncake"])
    plugin.activate()
    for words in (["--disaggregation-transfer-backend", "pdcore_nixl"], ["--x=pdcore_nixl"]):
        monkeypatch.setattr(sys, "argv", ["launch_server", *words])
        with pytest.raises(SystemExit, match=rf"(?s)sglang {installed}; it serves in sglang==0\.5\.23"):
            plugin.activate()


@pytest.mark.parametrize(
    ("asked", "mode", "port", "changed"),
    [
        ("pdcore_local", "prefill", 0, True),
        ("pdcore_local", "prefill", 8998, False),
        ("pdcore_local", "decode", 0, False),
        ("nixl", "prefill", 0, False),
    ],
)
def test_port_0_becomes_a_free_one_before_any_process_starts(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch, asked: str, mode: str, port: int, changed: bool
) -> None:
    said = SimpleNamespace(
        disaggregation_transfer_backend=asked,
        disaggregation_mode=mode,
        disaggregation_bootstrap_port=port,
        host="127.0.0.1",
    )
    declared: dict[str, int] = {}
    monkeypatch.setattr(model_override_base, "resolving_view", lambda _: said)
    monkeypatch.setattr(overrides, "declare_resolution", lambda _args, _by, **fields: declared.update(fields))
    hooks[plugin.HANDLE_ARGUMENTS](lambda _: None, ServerArgs())
    assert bool(declared) is changed
    assert all(1024 < free < 65_536 for free in declared.values())


def test_the_bootstrap_service_lives_and_says_where_it_cannot() -> None:
    server = PdcoreBootstrapServer("127.0.0.1", 0)
    port = int(server._server.address.rpartition(":")[2])
    with pytest.raises(BootstrapError, match="cannot listen"):
        PdcoreBootstrapServer("127.0.0.1", port)
    server.close()
