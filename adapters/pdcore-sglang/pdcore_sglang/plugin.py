"""How SGLang gets to know pdcore: names for its command line, and the classes behind them."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn

from packaging.specifiers import SpecifierSet

from pdcore.selection.discovery import discover
from pdcore_sglang.names import PREFIX, SUPPORTED, backend_of

if TYPE_CHECKING:
    from sglang.srt.disaggregation.utils import KVClassType, TransferBackend
    from sglang.srt.server_args import ServerArgs

__all__ = ["activate"]

GET_KV_CLASS = "sglang.srt.disaggregation.utils.get_kv_class"
HANDLE_ARGUMENTS = "sglang.srt.arg_groups.pd_disaggregation_hook.handle_pd_disaggregation"

log = logging.getLogger(__name__)


def activate() -> None:
    """Make every installed backend of pdcore a transfer backend of SGLang; its entry point calls this.

    SGLang does so in each of its processes, before it reads the command line.

    Raises:
        SystemExit: pdcore is asked for, and this SGLang is none that it can serve in. SGLang swallows
            every exception of a plugin.
    """
    try:
        installed = version("sglang")
    except PackageNotFoundError:
        installed = "none"
    if not fits(installed):
        _refuse_if_asked_for(sys.argv, installed)
        return
    from sglang.srt.arg_groups import choices
    from sglang.srt.disaggregation import utils
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    names = [PREFIX + name for name in discover().names]
    known = choices.DISAGG_TRANSFER_BACKEND_CHOICES
    choices.add_disagg_transfer_backend_choices([name for name in names if name not in known])
    unhooked = utils.get_kv_class

    def member(cls: type[TransferBackend], value: object) -> TransferBackend | None:
        if not isinstance(value, str) or value not in names:
            return None
        if utils.get_kv_class is unhooked:
            happened = f"SGLang was asked for {value!r}, and the hook of pdcore-sglang is not in place"
            refuse(happened, f"{GET_KV_CLASS} is SGLang's own", "look in its log for 'Failed to apply hooks'")
        # After 30 s SGLang would use pages again that are not safe; pdcore says when they are.
        os.environ.setdefault("SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT", "1e9")
        return _member(cls, value)

    utils.TransferBackend._missing_ = classmethod(member)  # type: ignore[assignment]  # enum's own hook
    HookRegistry.register(GET_KV_CLASS, _kv_class, HookType.AROUND)
    HookRegistry.register(HANDLE_ARGUMENTS, _handle_arguments, HookType.AROUND)


def fits(installed: str) -> bool:
    """Return whether this is a version of SGLang that the adapter was made for and tested with."""
    return SpecifierSet(SUPPORTED).contains(installed, prereleases=True)


def _refuse_if_asked_for(arguments: Sequence[str], installed: str) -> None:
    asked = next((word for word in arguments if word.rpartition("=")[2].startswith(PREFIX)), None)
    if asked is not None:
        happened = f"pdcore-sglang does not know this SGLang, and {asked!r} was asked for"
        to_do = f"pip install 'sglang{SUPPORTED}', or the pdcore-sglang of that version"
        refuse(happened, f"sglang {installed}; it serves in sglang{SUPPORTED}", to_do)


def refuse(happened: str, there_is: str, to_do: str) -> NoReturn:
    """End the process: what SGLang would swallow ends in a server that answers nothing."""
    raise SystemExit(f"pdcore-sglang: {happened}\n  there is: {there_is}\n  to do: {to_do}")


def _member(cls: type[TransferBackend], value: str) -> TransferBackend:
    """Return the one member of a name that the enumeration does not list."""
    member = cls._value2member_map_.get(value)
    if member is None:
        member = object.__new__(cls)
        member._name_, member._value_ = value.upper(), value
        cls._value2member_map_[value] = member
    assert isinstance(member, cls)
    return member


def _kv_class(
    original: Callable[[TransferBackend, KVClassType], Any], backend: TransferBackend, kind: KVClassType
) -> Any:
    """Return pdcore's class for a duty, and SGLang's where another backend is asked for."""
    if backend_of(backend.value) is None or kind.value == "kvargs":
        return original(backend, kind)
    if kind.value == "bootstrap_server":
        from pdcore_sglang.server import PdcoreBootstrapServer

        return PdcoreBootstrapServer
    from pdcore_sglang.handles import PdcoreReceiver, PdcoreSender
    from pdcore_sglang.manager import PdcoreManager

    return {"manager": PdcoreManager, "sender": PdcoreSender, "receiver": PdcoreReceiver}[kind.value]


def _handle_arguments(original: Callable[[ServerArgs], None], server_args: ServerArgs) -> None:
    """Take a free port for the bootstrap service where the command line says 0.

    The service and the ranks that register with it start in processes of their own, so that all must know
    the port before.
    """
    from sglang.srt.arg_groups.model_override_base import resolving_view
    from sglang.srt.arg_groups.overrides import declare_resolution

    original(server_args)
    said = resolving_view(server_args)
    asked = backend_of(said.disaggregation_transfer_backend)
    if asked is None or said.disaggregation_mode != "prefill" or said.disaggregation_bootstrap_port != 0:
        return
    with socket.create_server((said.host, 0)) as free:
        port = free.getsockname()[1]
    log.info("the bootstrap service of this prefill server gets port %d", port)
    declare_resolution(server_args, "pdcore_sglang", disaggregation_bootstrap_port=port)
