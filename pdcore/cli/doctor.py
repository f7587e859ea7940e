"""``pdcore doctor``: what a backend has, what it lacks, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping
from enum import Enum
from importlib import metadata

import attrs

from pdcore.assessment import Assessment, assess
from pdcore.backend import CONTRACT_VERSION, BackendSpec
from pdcore.cli.arguments import Parser
from pdcore.cli.table import columns
from pdcore.console import say
from pdcore.discovery import Candidate, Discovery, Problem, discover
from pdcore.echo import loopback_echo
from pdcore.errors import PDCoreError
from pdcore.model import Deadline
from pdcore.plugins import Observer, describe
from pdcore.selection import explain, load_observers, select
from pdcore.settings import LoadedConfig, Origin, load_config

__all__ = ["add_parser", "run"]

Origins = Mapping[str, Origin]

ECHO_SECONDS = 60.0
"""For writing and comparing, beside the time that the configuration gives an engine to start."""


def add_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "doctor",
        help="say in detail what a backend has and what it lacks",
        description="Looks at one backend, or at all of them: metadata, import, contract, options, probe, "
        "facts and protocols. If a backend is named and ready, one engine of it writes 64 MiB to itself, and "
        "every byte is compared. Exit status: 1 if the named backend cannot run here, or the echo fails.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a backend (default: all of them)")
    parser.add_argument("--no-echo", action="store_true", help="start no engine")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; returns 1 if a backend was named and is not ready, or fails the echo.

    Raises:
        SelectionError: no backend has this name.
        ConfigError: the configuration of the named backend is wrong.
    """
    discovery = discover()
    observers, verdicts = load_observers(discovery.observers)
    if args.name is None:
        found = [assess(candidate, observers, environ=os.environ) for candidate in discovery.backends]
        backends = [_findings(assessment, {}) for assessment in found]
        good = True
    else:
        found, loaded = _examine(args.name, discovery, observers)
        backends = [_findings(assessment, loaded.origins) for assessment in found]
        ready = [row for row, assessment in zip(backends, found, strict=True) if assessment.problem is None]
        good = bool(ready) and (args.no_echo or _echo(ready[0], loaded))
    report = {
        "pdcore": metadata.version("pdcore"),
        "contract": CONTRACT_VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backends": backends,
        "observers": [_observer(candidate, problem) for candidate, problem in verdicts],
        "notes": list(discovery.notes),
    }
    say(json.dumps(report, indent=2) if args.json else _as_text(report))
    return 0 if good else 1


def _examine(
    name: str, discovery: Discovery, observers: tuple[Observer, ...]
) -> tuple[list[Assessment], LoadedConfig]:
    named = [candidate for candidate in discovery.backends if candidate.name == name]
    if not named:
        others = [assess(candidate, environ=os.environ) for candidate in discovery.backends]
        raise explain(name, [(other.candidate, other.problem) for other in others])
    loaded = load_config(cli={"backend": name}, plugin_prefixes=discovery.names)
    options = loaded.config.backend_options
    return [
        assess(candidate, observers, options, environ=os.environ, origins=loaded.origins)
        for candidate in named
    ], loaded


def _echo(findings: dict[str, object], loaded: LoadedConfig) -> bool:
    """Add what came of the echo to the findings of a backend that is ready."""
    config = loaded.config
    try:
        backend = select(config.backend, config.backend_options, origins=loaded.origins)
        deadline = Deadline.after(config.timeouts.engine_start + ECHO_SECONDS)
        echo = loopback_echo(backend, config, deadline)
    except PDCoreError as error:
        reason = " ".join(f"{error.happened}: {error.there_is}".split())
        findings |= {"verdict": "the loopback echo failed", "fix": error.to_do, "echo": reason}
        return False
    transport = echo.transport
    findings["transport"] = f"{transport.name}, {transport.certainty.value}: {transport.how}".rstrip(": ")
    findings["echo"] = f"{echo.nbytes} bytes written and compared, {echo.gigabytes_per_second:.2f} GB/s"
    return True


def _findings(found: Assessment, origins: Origins) -> dict[str, object]:
    candidate, spec = found.candidate, found.spec
    findings: dict[str, object] = {
        "name": candidate.name,
        "verdict": found.problem.reason if found.problem else "ready",
        "fix": found.problem.fix if found.problem else None,
        "distribution": candidate.distribution,
        "module": candidate.module,
    }
    if spec is None:
        return findings
    findings["summary"] = spec.summary
    findings["runs on"] = spec.runs_on
    findings["contract"] = spec.contract_version
    if engine := _told(spec.engine_version):
        findings["engine"] = engine
    if found.variant is not None:
        findings["variant of"] = spec.name
        findings["environment"] = [
            f"{name}={'(cleared)' if value is None else value}"
            for name, value in found.variant.environment.items()
        ]
    if found.readiness is not None:
        findings["probe"] = "ready" if found.readiness.ready else found.readiness.reason
    if found.choice is not None:
        findings["protocols"] = [
            f"{verdict.protocol}: {'usable' if verdict.usable else 'not usable'}, {verdict.reason}"
            for verdict in found.choice.verdicts
        ]
    findings["options"] = _options(found, origins)
    facts = _facts(spec)
    if facts:
        findings["facts"] = facts
    return findings


def _told(tell: Callable[[], str]) -> str:
    try:
        return tell()
    except Exception as error:
        return f"the backend cannot tell it: {describe(error)}"


def _facts(spec: BackendSpec) -> list[str]:
    try:
        return [f"{title}: {fact}" for title, fact in spec.facts().items()]
    except Exception as error:  # a diagnosis goes on without them
        return [f"the backend cannot tell them: {describe(error)}"]


def _options(found: Assessment, origins: Origins) -> list[str]:
    if found.spec is None or not attrs.has(found.spec.options):
        return []
    lines = []
    for field in attrs.fields(found.spec.options):
        origin: Origin | str | None = origins.get(f"backend_options.{field.name}")
        if origin is None and found.variant is not None and field.name in found.variant.defaults:
            origin = f"variant {found.variant.name}"
        default = "required" if field.default is attrs.NOTHING else f"default {_default(field)}"
        value = "?" if found.options is None else _shown(getattr(found.options, field.name))
        lines.append(f"{field.name}={value} ({default}{f', set by {origin}' if origin else ''})")
    return lines


def _shown(value: object) -> str:
    return str(value.value) if isinstance(value, Enum) else repr(value)


def _default(field: attrs.Attribute[object]) -> str:
    factory = getattr(field.default, "factory", None)
    if factory is None:
        return _shown(field.default)
    return "computed" if getattr(field.default, "takes_self", False) else _shown(factory())


def _observer(candidate: Candidate, problem: Problem | None) -> str:
    return f"{candidate.name} ({candidate.distribution}): {problem.reason if problem else 'ready'}"


def _as_text(report: Mapping[str, object]) -> str:
    backends = report["backends"]
    assert isinstance(backends, list)
    parts = [_block(findings) for findings in backends] or ["no backend is installed"]
    rest = {key: value for key, value in report.items() if key != "backends"}
    return "\n\n".join([*parts, columns(_rows(rest))])


def _block(findings: Mapping[str, object]) -> str:
    rest = {key: value for key, value in findings.items() if key not in ("name", "verdict")}
    return f"{findings['name']}: {findings['verdict']}\n{columns(_rows(rest), indent='  ')}"


def _rows(values: Mapping[str, object]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        lines = (value or ["none"]) if isinstance(value, list) else [value] if value is not None else []
        rows += [(key if number == 0 else "", str(line)) for number, line in enumerate(lines)]
    return rows
