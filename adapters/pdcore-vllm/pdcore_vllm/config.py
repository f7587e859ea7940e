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

import pdcore
from pdcore import ConfigError, PDCoreError
from pdcore.address import is_wildcard
from pdcore.discovery import discover
from pdcore.errors import ConfigProblem
from pdcore.settings import LoadedConfig, OriginKind, load_config

__all__ = ["TRIED", "Engine", "Settings", "UnsupportedError", "fingerprint_of"]

TRIED = ("0.32",)
"""Minor versions of vLLM that were tried; its connector interface calls itself experimental."""
CACHES = ("FullAttentionSpec", "MLAAttentionSpec")
FLAG = "--kv-transfer-config"
OWN = ("lease", "bootstrap_port", "metrics_port", "fingerprint")


class UnsupportedError(PDCoreError):
    """This vLLM, or what it was asked for, is not supported."""


@attrs.frozen
class Engine:
    """What is looked at of a vLLM engine."""

    version: str
    role: str
    cache_groups: tuple[str, ...]
    context_parallel: int = 1

    def check(self) -> None:
        """Refuse what was not tried, or does not work.

        Raises:
            UnsupportedError: and what to use instead.
        """
        if ".".join(self.version.split(".")[:2]) not in TRIED:
            raise UnsupportedError(
                f"pdcore-vllm {pdcore.__version__} was not tried with vLLM {self.version}",
                f"tried: {', '.join(f'{minor}.*' for minor in TRIED)}",
                f"install vllm=={TRIED[-1]}.*, or a pdcore-vllm for vLLM {self.version}",
            )
        if self.role not in ("kv_producer", "kv_consumer"):
            raise UnsupportedError(
                f"pdcore-vllm does not support kv_role {self.role!r}",
                "an engine either computes prompts for others, or continues those of others",
                "use kv_role kv_producer for prefill, and kv_consumer for decode",
            )
        if len(self.cache_groups) != 1 or self.cache_groups[0] not in CACHES:
            raise UnsupportedError(
                "pdcore-vllm does not support the KV cache of this model",
                f"groups: {', '.join(self.cache_groups) or 'none'}; supported: one of {' or '.join(CACHES)}",
                "use a model whose layers all have attention (or all MLA), and leave out "
                "--no-disable-hybrid-kv-cache-manager: sliding windows work without that manager",
            )
        if self.context_parallel > 1:
            raise UnsupportedError(
                "pdcore-vllm does not support context parallelism",
                f"prefill or decode context parallel size {self.context_parallel}",
                "use tensor parallelism",
            )


@attrs.frozen
class Settings:
    """What a connector is configured with, beside what pdcore itself has in ``loaded``.

    ``lease``: seconds that prefill keeps a request's blocks for decode, and that decode waits for them.
    ``bootstrap_port``: the port of prefill's bootstrap service, 0 for any free one; data-parallel engines add
    their index. ``metrics_port``: where a worker serves pdcore's Prometheus metrics (the next ones for the
    other ranks), None for nowhere. ``fingerprint``: names and values that replace those made of the model.
    """

    loaded: LoadedConfig
    lease: float
    bootstrap_port: int
    metrics_port: int | None
    fingerprint: Mapping[str, str]

    @property
    def config(self) -> pdcore.Config:
        """pdcore's own configuration."""
        return self.loaded.config

    @classmethod
    def load(cls, extra: Mapping[str, Any], host: Callable[[], str]) -> Settings:
        """Return the settings of ``kv_connector_extra_config``.

        ``host`` tells the engine's address, where nothing else says where pdcore listens.

        Raises:
            ConfigError: values are wrong, or no backend is named; all of them are listed.
        """
        names = discover().names
        own = {name: extra[name] for name in OWN if name in extra}
        loaded = load_config(
            cli={name: value for name, value in extra.items() if name not in OWN}, plugin_prefixes=names
        )
        config, origins, problems = loaded.config, loaded.origins, _problems(own)
        if config.backend is None:
            problems.append(ConfigProblem("backend", FLAG, f"must be named; installed: {', '.join(names)}"))
        if problems:
            raise ConfigError(problems)
        if origins["host"].kind is OriginKind.DEFAULT and not is_wildcard(here := host()):
            config = attrs.evolve(config, host=here)
        lease = float(own.get("lease", 60.0))
        if origins["timeouts.request"].kind is OriginKind.DEFAULT:
            config = attrs.evolve(config, timeouts=_within(config.timeouts, lease))
        port, metrics_port = int(own.get("bootstrap_port", 0)), own.get("metrics_port")
        return cls(LoadedConfig(config, origins), lease, port, metrics_port, dict(own.get("fingerprint", {})))


def _within(timeouts: pdcore.Timeouts, seconds: float) -> pdcore.Timeouts:
    """Return timeouts of which a request has no more than so many seconds."""
    pairing, bootstrap = min(timeouts.pairing, seconds), min(timeouts.bootstrap, seconds)
    return attrs.evolve(timeouts, request=seconds, pairing=pairing, bootstrap=bootstrap)


def _problems(own: Mapping[str, Any]) -> list[ConfigProblem]:
    """Return what is wrong with our own values."""
    problems = []
    lease = own.get("lease", 60)
    if isinstance(lease, bool) or not isinstance(lease, int | float) or not 0 < lease < 1e6:
        problems.append(ConfigProblem("lease", FLAG, f"must be seconds above 0, is {lease!r}"))
    for name in ("bootstrap_port", "metrics_port"):
        port = own.get(name, 0)
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            problems.append(ConfigProblem(name, FLAG, f"must be a port in 0..65535, is {port!r}"))
    named = own.get("fingerprint", {})
    if not isinstance(named, Mapping) or not all(isinstance(v, str) for v in (*named, *named.values())):
        problems.append(ConfigProblem("fingerprint", FLAG, f"must map names to text, is {named!r}"))
    return problems


def fingerprint_of(
    model: str, revision: str | None, shape: Mapping[str, Any], quantisation: str | None, cache_dtype: str
) -> dict[str, str]:
    """Return what tells caches of two models apart.

    ``model`` is a name or a path, of which the last part counts; of ``shape``, the model's configuration, all
    that is not about where it came from.
    """
    about = {
        name: value
        for name, value in shape.items()
        if not name.startswith("_") and name not in ("transformers_version", "torch_dtype", "dtype")
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    given = {
        "model": model.rstrip("/").rpartition("/")[2],
        "revision": revision,
        "config": digest[:16],
        "quantisation": quantisation,
        "cache_dtype": cache_dtype,
        "cache_format": "vllm",
    }
    return {name: value for name, value in given.items() if value}
