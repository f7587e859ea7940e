"""Where configured values come from: code > command line > environment > file > engine > default.

Each value remembers its source. Environment names follow from the schema: ``PDCORE_<SECTION>_<FIELD>``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path

import attrs

from pdcore.arguments import named
from pdcore.checks.scalars import several, shown
from pdcore.config.records import Config
from pdcore.config.service_links import say_ignored, service_links
from pdcore.config.structuring import Text, nearest, try_structure
from pdcore.errors import ArgumentError, ConfigError, ConfigProblem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["LoadedConfig", "Origin", "OriginKind", "load_config"]

PREFIX = "PDCORE_"
FILE_VARIABLE = "PDCORE_CONFIG"
RESERVED = frozenset({FILE_VARIABLE, "PDCORE_PLUGINS", "PDCORE_DISABLE", "PDCORE_TRACEBACK"})
OPTIONS = "backend_options"


class OriginKind(Enum):
    """The sources of configured values, the strongest first."""

    CODE = "code"
    COMMAND_LINE = "command line"
    ENVIRONMENT = "environment"
    FILE = "file"
    ENGINE = "the inference engine"
    DEFAULT = "default"


@attrs.frozen
class Origin:
    """Where a value was set; ``detail`` is the variable or the file, if there is one."""

    kind: OriginKind
    detail: str = ""

    def __str__(self) -> str:
        return self.detail or self.kind.value


@attrs.frozen
class LoadedConfig:
    """A configuration with the origin of every value, by its dotted path."""

    config: Config
    origins: Mapping[str, Origin]


@attrs.frozen
class _Setting:
    value: object
    origin: Origin


_Settings = dict[str, _Setting]


def load_config(
    *,
    code: Mapping[str, object] | None = None,
    cli: Mapping[str, object] | None = None,
    engine: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    toml_path: str | os.PathLike[str] | None = None,
    plugin_prefixes: Collection[str] = (),
) -> LoadedConfig:
    """Gather the configuration from all sources.

    Args:
        code: values by field name, with sections as nested mappings or as dotted keys.
        cli: the same from a command line; None means that a flag was not given.
        engine: the same from an inference engine that knows better than the defaults: where this machine is,
            how long its requests may take.
        environ: the environment, ``os.environ`` by default. An empty variable counts as not set; those that
            Kubernetes makes of a Service named ``pdcore-...`` are ignored, which is logged once.
        toml_path: a file of the same shape; by default the one that PDCORE_CONFIG names, if any.
        plugin_prefixes: backend names; ``PDCORE_<NAME>_<OPTION>`` is an option of that backend and of
            those whose names continue its name with an underscore, and ignored when another is selected.

    Raises:
        ConfigError: listing every wrong value with its path, origin and reason.
        ArgumentError: a source is no mapping, or the path is none.
    """
    for what, source in (("code", code), ("cli", cli), ("engine", engine), ("environ", environ)):
        if source is not None:
            named(f"{what} of a configuration", source)
    if toml_path is not None and not isinstance(toml_path, str | os.PathLike):
        raise ArgumentError("toml_path is no path", shown(toml_path), "hand in a path, or None")
    prefixes = several(plugin_prefixes)
    if prefixes is None or not all(isinstance(name, str) for name in prefixes):
        raise ArgumentError(
            "plugin_prefixes are no names", shown(plugin_prefixes), "hand in names of backends"
        )
    environ = os.environ if environ is None else environ
    problems: list[ConfigProblem] = []
    given = {key: value for key, value in (cli or {}).items() if value is not None}
    file = _read_file(toml_path, environ, problems)
    command_line = {
        path: attrs.evolve(s, value=Text(s.value)) if isinstance(s.value, str) else s
        for path, s in _flatten(given, Origin(OriginKind.COMMAND_LINE))
    }
    in_code = dict(_flatten(code or {}, Origin(OriginKind.CODE)))
    variables = _read_environment(environ, plugin_prefixes, problems)
    beneath = dict(_flatten(engine or {}, Origin(OriginKind.ENGINE)))
    layers: list[_Settings] = [beneath, file, variables.settings, command_line, in_code]
    backend = next((str(layer["backend"].value) for layer in reversed(layers) if "backend" in layer), "")
    layers.insert(3, variables.options_of(backend))
    settings: _Settings = {path: setting for layer in layers for path, setting in layer.items()}

    config, wrong = try_structure(Config, _nest(settings))
    problems += [ConfigProblem(path, _origin_of(path, settings), reason) for path, reason in wrong]
    if config is None or problems:
        raise ConfigError(problems)
    origins = {path: Origin(OriginKind.DEFAULT) for path in _leaves(Config)}
    origins.update((path, setting.origin) for path, setting in settings.items())
    return LoadedConfig(config, origins)


def _leaves(cls: type, prefix: str = "") -> Iterator[str]:
    attrs.resolve_types(cls)
    for field in attrs.fields(cls):
        if field.type is not None and attrs.has(field.type):
            yield from _leaves(field.type, f"{prefix}{field.name}.")
        elif field.name != OPTIONS:
            yield prefix + field.name


def _flatten(
    values: Mapping[str, object], origin: Origin, prefix: str = ""
) -> Iterator[tuple[str, _Setting]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and prefix != f"{OPTIONS}.":
            yield from _flatten(value, origin, f"{prefix}{key}.")
        else:
            yield prefix + key, _Setting(value, origin)


def _nest(settings: _Settings) -> dict[str, object]:
    root: dict[str, object] = {}
    for path, setting in sorted(settings.items()):
        *sections, name = path.split(".", 1) if path.startswith(f"{OPTIONS}.") else path.split(".")
        table = root
        for section in sections:
            inner = table.setdefault(section, {})
            if not isinstance(inner, dict):
                break  # "transfer = 3" beside "transfer.model": the structuring names it
            table = inner
        else:
            table[name] = setting.value
    return root


def _origin_of(path: str, settings: _Settings) -> str:
    for known, setting in settings.items():
        if known == path or known.startswith(f"{path}.") or path.startswith(f"{known}."):
            return str(setting.origin)
    return OriginKind.DEFAULT.value


def _read_file(
    toml_path: str | os.PathLike[str] | None, environ: Mapping[str, str], problems: list[ConfigProblem]
) -> _Settings:
    path, source = (
        (toml_path, OriginKind.CODE.value)
        if toml_path is not None
        else (environ.get(FILE_VARIABLE), FILE_VARIABLE)
    )
    if not path:
        return {}
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(ConfigProblem(str(path), source, f"cannot be read: {error}"))
        return {}
    return dict(_flatten(values, Origin(OriginKind.FILE, str(path))))


@attrs.frozen
class _Variables:
    settings: _Settings
    plugin_settings: Mapping[str, _Settings]

    def options_of(self, backend: str) -> _Settings:
        family = _family(backend, self.plugin_settings)
        return self.plugin_settings[family] if family else {}


def _family(name: str, prefixes: Collection[str]) -> str | None:
    """The shortest prefix wins, so that a variant shares the options of its base."""
    word = _word(name)
    return min((p for p in prefixes if word == p or word.startswith(f"{p}_")), key=len, default=None)


def _word(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _read_environment(
    environ: Mapping[str, str], plugin_prefixes: Collection[str], problems: list[ConfigProblem]
) -> _Variables:
    known = {PREFIX + path.upper().replace(".", "_"): path for path in _leaves(Config)}
    plugin_settings: dict[str, _Settings] = {_word(name): {} for name in plugin_prefixes}
    settings: _Settings = {}
    ours = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value}
    families = {name: _family(name[len(PREFIX) :].lower(), plugin_settings) for name in ours}
    foreign = service_links(ours, [name for name, family in families.items() if family])
    say_ignored(foreign)
    for variable, value in sorted(ours.items()):
        if variable in RESERVED or variable in foreign:
            continue
        setting = _Setting(Text(value), Origin(OriginKind.ENVIRONMENT, variable))
        rest = variable[len(PREFIX) :].lower()
        family = families[variable]
        if variable in known:
            settings[known[variable]] = setting
        elif family and rest != family:
            plugin_settings[family][f"{OPTIONS}.{rest[len(family) + 1 :]}"] = setting
        else:
            reason = f"is unknown{nearest(variable, [*known, *sorted(RESERVED)])}"
            problems.append(ConfigProblem(variable, OriginKind.ENVIRONMENT.value, reason))
    return _Variables(settings, plugin_settings)
