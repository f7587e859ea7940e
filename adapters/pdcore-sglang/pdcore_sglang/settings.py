"""pdcore's configuration in an SGLang server: what PDCORE_* and its file say, and for the rest SGLang."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import attrs

from pdcore import Config, load_config
from pdcore.discovery import discover
from pdcore.errors import ConfigError, ConfigProblem
from pdcore.events import Subscriber
from pdcore.settings import LoadedConfig, OriginKind
from pdcore_sglang.engine import Rank
from pdcore_sglang.names import METRICS_PORT

__all__ = ["exporters", "load", "of_rank"]

log = logging.getLogger(__name__)


def load(code: Mapping[str, object] | None = None) -> LoadedConfig:
    """Return what is configured, with the options of all backends that are installed."""
    return load_config(code=code, plugin_prefixes=discover().names)


def of_rank(rank: Rank) -> Config:
    """Return the configuration of a rank; its host is the one that SGLang knows, unless one is named."""
    loaded = load({"backend": rank.backend})
    if loaded.origins["host"].kind is OriginKind.DEFAULT:
        return attrs.evolve(loaded.config, host=rank.host)
    return loaded.config


def exporters(rank: Rank) -> tuple[Subscriber, ...]:
    """Start pdcore's Prometheus endpoint if METRICS_PORT asks for one; return who counts for it.

    The ports follow each other by rank, since each rank is a process of its own.

    Raises:
        ConfigError: the variable names no port.
        MissingExtraError: prometheus_client is not installed.
    """
    asked = os.environ.get(METRICS_PORT, "")
    if not asked:
        return ()
    place = rank.topology
    port = int(asked) + place.dp_rank * place.group_size + place.unique_rank if asked.isdecimal() else 0
    if not 0 < port < 2**16:
        raise ConfigError([ConfigProblem(METRICS_PORT, "the environment", f"{asked!r} is no port")])
    from prometheus_client import CollectorRegistry, start_http_server

    from pdcore.telemetry.prometheus import PrometheusEvents

    registry = CollectorRegistry()
    start_http_server(port, rank.host, registry)
    log.info("pdcore's Prometheus endpoint of this rank: http://%s:%d/metrics", rank.host, port)
    return (PrometheusEvents(registry),)
