"""What the user configures, and what is refused: at the start, with what was tried.

``kv_connector_extra_config`` holds fields of pdcore's Config (nested, or with dots), and those of
:class:`Settings`. ``PDCORE_*`` variables and the file of ``PDCORE_CONFIG`` count as everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs.validators import in_, optional

from pdcore import ConfigError, PDCoreError
from pdcore.address import is_wildcard
from pdcore.discovery import discover
from pdcore.errors import ConfigProblem
from pdcore.settings import LoadedConfig, OriginKind, load_config
from pdcore.structuring import try_structure

__all__ = ["Settings", "UnsupportedError", "check_engine", "fingerprint_of"]

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
        to_do = "use a model whose layers all have attention (or all MLA), and leave out "
        to_do += "--no-disable-hybrid-kv-cache-manager: sliding windows work without that manager"
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
    their index. ``metrics_port``: where a worker serves pdcore's Prometheus metrics (the next ones for the
    other ranks), None for nowhere. ``fingerprint``: names and values that replace those made of the model.
    """

    lease: float = attrs.field(default=60.0, validator=attrs.validators.gt(0))
    bootstrap_port: int = attrs.field(default=0, validator=PORT)
    metrics_port: int | None = attrs.field(default=None, validator=optional(PORT))
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
        loaded = load_config(cli=rest, plugin_prefixes=names)
        config, origins = loaded.config, loaded.origins
        if config.backend is None:
            wrong = [*wrong, ("backend", f"must be named; installed: {', '.join(names)}")]
        if wrong or own is None:
            raise ConfigError([ConfigProblem(path, FLAG, reason) for path, reason in wrong])
        if origins["host"].kind is OriginKind.DEFAULT and not is_wildcard(here := host()):
            config = attrs.evolve(config, host=here)
        if origins["timeouts.request"].kind is OriginKind.DEFAULT:
            within = {
                name: min(getattr(config.timeouts, name), own.lease) for name in ("pairing", "bootstrap")
            }
            config = attrs.evolve(config, timeouts=attrs.evolve(config.timeouts, request=own.lease, **within))
        return cls(own, LoadedConfig(config, origins))


def fingerprint_of(
    model: str, revision: str | None, shape: Mapping[str, Any], quantisation: str | None, cache_dtype: str
) -> dict[str, str]:
    """Return what tells caches of two models apart.

    ``model`` is a name or a path, of which the last part counts; of ``shape``, the model's configuration, all
    that is not about where it came from.
    """
    ignored = ("transformers_version", "torch_dtype", "dtype")
    about = {k: v for k, v in shape.items() if not k.startswith("_") and k not in ignored}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
    name = model.rstrip("/").rpartition("/")[2]
    given = {"model": name, "revision": revision, "config": digest, "quantisation": quantisation}
    given |= {"cache_dtype": cache_dtype, "cache_format": "vllm"}
    return {name: value for name, value in given.items() if value}
