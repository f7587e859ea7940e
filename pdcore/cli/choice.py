"""The backend that a subcommand works with: flags, then PDCORE_* variables, then the file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from enum import Enum

import attrs

from pdcore.cli.arguments import key_value
from pdcore.config.records import Config
from pdcore.config.sources import load_config
from pdcore.selection.discovery import discover
from pdcore.selection.select import Backend, select

__all__ = ["Chosen", "add_backend_flags", "choose"]

DEFAULT = "local"


@attrs.frozen
class Chosen:
    """The configuration, the backend that it selects, and the options given, as text for workers."""

    config: Config
    backend: Backend
    options: dict[str, str]


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend`` and ``--option``."""
    parser.add_argument(
        "--backend", metavar="NAME", help="the backend's registered name (default: PDCORE_BACKEND, or local)"
    )
    add_option_flag(parser)


def add_option_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--option``."""
    parser.add_argument(
        "--option", action="append", default=[], type=key_value, metavar="KEY=VALUE", help="a backend option"
    )


def choose(args: argparse.Namespace, more: Mapping[str, object] | None = None) -> Chosen:
    """Load the configuration and select its backend, before any process or pool is made.

    ``more`` are further values from flags, by dotted path; None means that a flag was not given.

    Raises:
        ConfigError, SelectionError, VariantConflictError: as configured, it cannot run here.
    """
    flags = {"backend": args.backend, **{f"backend_options.{k}": v for k, v in args.option}, **(more or {})}
    names = discover().names
    loaded = load_config(cli=flags, plugin_prefixes=names)
    if loaded.config.backend is None:
        loaded = load_config(cli={**flags, "backend": DEFAULT}, plugin_prefixes=names)
    backend, given = select(loaded), loaded.config.backend_options
    return Chosen(loaded.config, backend, {k: _as_text(getattr(backend.options, k)) for k in given})


def _as_text(value: object) -> str:
    return str(value.value if isinstance(value, Enum) else value)
