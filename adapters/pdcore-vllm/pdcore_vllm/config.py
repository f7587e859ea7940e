"""What the user configures, and what is refused: at the start, with what was tried.

``kv_connector_extra_config`` holds fields of pdcore's Config (nested, or with dots), and those of
:class:`Settings`. ``PDCORE_*`` variables and the file of ``PDCORE_CONFIG`` count as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs.validators import in_

from pdcore import ConfigError, PDCoreError
from pdcore.config.sources import LoadedConfig, load_config
from pdcore.config.structuring import try_structure
from pdcore.errors import ConfigProblem
from pdcore.host.address import is_wildcard
from pdcore.selection.discovery import discover

__all__ = ["Settings", "UnsupportedError", "check_engine"]

TRIED = "0.32"
"""The minor version of vLLM that was tried; its connector interface calls itself experimental."""
CACHES = ("FullAttentionSpec", "MLAAttentionSpec")
FLAG = "--kv-transfer-config"
PORT = in_(range(65536))


class UnsupportedError(PDCoreError):
    """This vLLM, or what it was asked for, is not supported."""


def check_engine(version: str, role: str, caches: tuple[str, ...], context_parallel: int) -> None:
    """Refuse what was not tried, or does not work.

    Raises:
        UnsupportedError: and what to use instead.
    """
    there_is = to_do = ""
    if not version.startswith(f"{TRIED}."):
        there_is = f"vLLM {version}; tried: {TRIED}.*"
        to_do = f"install vllm=={TRIED}.*, or a pdcore-vllm for vLLM {version}"
    elif role not in ("kv_producer", "kv_consumer"):
        there_is = f"kv_role {role!r}: an engine computes prompts for others, or continues those of others"
        to_do = "use kv_role kv_producer for prefill, and kv_consumer for decode"
    elif len(caches) != 1 or caches[0] not in CACHES:
        there_is = f"KV cache groups {', '.join(caches) or 'none'}; supported: one of {' or '.join(CACHES)}"
        to_do = "use a model whose layers all have attention (or all MLA); if some have a sliding window, "
        to_do += "leave out --no-disable-hybrid-kv-cache-manager; if all have, add --disable-sliding-window"
    elif context_parallel != 1:
        there_is = f"prefill or decode context parallel size {context_parallel}"
        to_do = "use tensor parallelism"
    if to_do:
        raise UnsupportedError("pdcore-vllm does not support this engine", there_is, to_do)


@attrs.frozen
class _Own:
    """The options that are not pdcore's.

    ``lease``: seconds that prefill keeps a request's blocks for decode, and that decode waits for them.
    ``bootstrap_port``: the port of prefill's bootstrap service, 0 for any free one; data-parallel engines add
    their index. ``fingerprint``: names and values that replace those made of the model.
    """

    lease: float = attrs.field(default=60.0, validator=attrs.validators.gt(0))
    bootstrap_port: int = attrs.field(default=0, validator=PORT)
    fingerprint: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Settings:
    """What a connector is configured with: by the options of ``own``, and by pdcore's in ``loaded``."""

    own: _Own
    loaded: LoadedConfig

    @classmethod
    def load(cls, extra: Mapping[str, Any], host: Callable[[], str]) -> Settings:
        """Return the settings of ``kv_connector_extra_config``.

        ``host`` tells the engine's address, where nothing else says where pdcore listens.

        Raises:
            ConfigError: values are wrong, or no backend is named; all of one kind are listed.
        """
        names, ours = discover().names, {field.name for field in attrs.fields(_Own)}
        own, wrong = try_structure(_Own, {name: value for name, value in extra.items() if name in ours})
        rest = {name: value for name, value in extra.items() if name not in ours}
        knows: dict[str, object] = {} if own is None else {"timeouts.request": own.lease}
        if not is_wildcard(here := host()):
            knows["host"] = here
        loaded = load_config(cli=rest, engine=knows, plugin_prefixes=names)
        if loaded.config.backend is None:
            wrong = [*wrong, ("backend", f"must be named; installed: {', '.join(names)}")]
        if wrong or own is None:
            raise ConfigError([ConfigProblem(path, FLAG, reason) for path, reason in wrong])
        return cls(own, loaded)
