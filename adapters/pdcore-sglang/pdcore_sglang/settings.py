"""pdcore's configuration in an SGLang server: what PDCORE_* and its file say, and for the rest SGLang."""

from __future__ import annotations

from collections.abc import Mapping

from pdcore import Config, load_config
from pdcore.config.sources import LoadedConfig
from pdcore.selection.discovery import discover
from pdcore_sglang.engine import Rank

__all__ = ["load", "of_rank"]


def load(
    code: Mapping[str, object] | None = None, engine: Mapping[str, object] | None = None
) -> LoadedConfig:
    """Return what is configured, with the options of all backends that are installed."""
    return load_config(code=code, engine=engine, plugin_prefixes=discover().names)


def of_rank(rank: Rank) -> Config:
    """Return the configuration of a rank; its host is the one that SGLang knows, unless one is named."""
    place, loaded = rank.topology, load({"backend": rank.backend}, {"host": rank.host})
    return loaded.config.of_process(place.dp_rank * place.group_size + place.unique_rank)
