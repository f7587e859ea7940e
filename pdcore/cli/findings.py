"""What ``pdcore doctor`` finds out about a backend, as data: every fact in a field of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeVar

import attrs

from pdcore.cli.echo import Echo
from pdcore.config.sources import Origin
from pdcore.errors import PDCoreError
from pdcore.selection.assessment import Assessment
from pdcore.selection.discovery import Candidate, Problem
from pdcore.selection.plugins import describe

__all__ = ["Data", "Origins", "echo_failed", "echoed", "findings", "observer"]

Data = dict[str, object]
Origins = Mapping[str, Origin]

T = TypeVar("T")


def findings(found: Assessment, origins: Origins) -> Data:
    """Return what is known of a candidate: as much as it got so far as to tell."""
    candidate, spec = found.candidate, found.spec
    data: Data = {
        "name": candidate.name,
        "ready": found.problem is None,
        "verdict": found.problem.reason if found.problem else "ready",
        "fix": found.problem.fix if found.problem else None,
        "distribution": candidate.distribution,
        "module": candidate.module,
    }
    if spec is None:
        return data
    data |= {"summary": spec.summary, "runs_on": spec.runs_on, "contract": spec.contract_version}
    data["engine"] = _told(spec.engine_version) or None
    data["variant_of"] = spec.name if found.variant is not None else None
    data["environment"] = dict(found.variant.environment) if found.variant is not None else {}
    if found.readiness is not None:
        ready = found.readiness.ready
        data["probe"] = {"ready": ready, "reason": None if ready else found.readiness.reason}
    if found.choice is not None:
        data["protocols"] = [attrs.asdict(verdict) for verdict in found.choice.verdicts]
    declared = attrs.asdict(spec.capabilities)
    data["promises"] = [name for name, holds in declared.items() if holds is True]
    data["options"] = _options(found, origins)
    facts = _told(spec.facts)
    data["facts"] = {"error": facts} if isinstance(facts, str) else dict(facts)
    return data


def echoed(echo: Echo) -> Data:
    """Return what came of an echo that was good."""
    transport = echo.transport
    return {
        "transport": {
            "name": transport.name,
            "certainty": transport.certainty.value,
            "how": transport.how,
        },
        "echo": {
            "good": True,
            "bytes": echo.nbytes,
            "gigabytes_per_second": echo.gigabytes_per_second,
            "reason": None,
        },
    }


def echo_failed(error: PDCoreError) -> Data:
    """Return what came of an echo that was not."""
    reason = " ".join(f"{error.happened}: {error.there_is}".split())
    return {
        "ready": False,
        "verdict": "the loopback echo failed",
        "fix": error.to_do,
        "echo": {"good": False, "bytes": None, "gigabytes_per_second": None, "reason": reason},
    }


def observer(candidate: Candidate, problem: Problem | None) -> Data:
    """Return an observer and its verdict."""
    return {
        "name": candidate.name,
        "distribution": candidate.distribution,
        "ready": problem is None,
        "reason": problem.reason if problem else None,
        "fix": problem.fix if problem else None,
    }


def _told(tell: Callable[[], T]) -> T | str:
    try:
        return tell()
    except Exception as error:  # a diagnosis goes on without it
        return f"the backend cannot tell: {describe(error)}"


def _options(found: Assessment, origins: Origins) -> list[Data]:
    if found.spec is None or not attrs.has(found.spec.options):
        return []
    options: list[Data] = []
    for field in attrs.fields(found.spec.options):
        origin: Origin | str | None = origins.get(f"backend_options.{field.name}")
        if origin is None and found.variant is not None and field.name in found.variant.defaults:
            origin = f"variant {found.variant.name}"
        required, default = field.default is attrs.NOTHING, _default(field)
        options.append(
            {
                "name": field.name,
                "value": None if found.options is None else _plain(getattr(found.options, field.name)),
                "default": default,
                "required": required,
                "origin": None if origin is None else str(origin),
            }
        )
    return options


def _default(field: attrs.Attribute[object]) -> object:
    """Return a default as data; None if there is none, or if it depends on other options."""
    if field.default is attrs.NOTHING:
        return None
    factory = getattr(field.default, "factory", None)
    if factory is None:
        return _plain(field.default)
    return None if getattr(field.default, "takes_self", False) else _plain(factory())


def _plain(value: object) -> object:
    """Return a value as JSON has it; of other kinds what they say of themselves."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
