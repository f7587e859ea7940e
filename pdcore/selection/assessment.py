"""How far one candidate gets: loaded, declared, configured, probed, and with a protocol.

Whatever stops it becomes a value, so that one backend never keeps another from being used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from pdcore.config.sources import Origin
from pdcore.config.structuring import structure_options
from pdcore.contract.backend import (
    CONTRACT_VERSION,
    BackendSpec,
    ProtocolChoice,
    ProtocolRequest,
    Readiness,
    Variant,
)
from pdcore.errors import PDCoreError, PluginError
from pdcore.selection.discovery import Candidate, Problem
from pdcore.selection.environment import check_conflicts, environment_of
from pdcore.selection.plugins import BackendPlugin, Observer, describe, load_backend

__all__ = ["Assessment", "assess", "problem_of"]


@attrs.frozen
class Assessment:
    """What is known about one candidate: as far as it got, and what stopped it.

    Without a ``problem`` everything else but ``variant`` is known; ``error`` is the problem as it was
    raised, if it was.
    """

    candidate: Candidate
    problem: Problem | None = None
    plugin: BackendPlugin | None = None
    spec: BackendSpec | None = None
    variant: Variant | None = None
    options: object = None
    readiness: Readiness | None = None
    choice: ProtocolChoice | None = None
    error: PDCoreError | None = None


def assess(
    candidate: Candidate,
    observers: Sequence[Observer] = (),
    options: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str],
    origins: Mapping[str, Origin] | None = None,
) -> Assessment:
    """Take one candidate as far as it goes; whatever stops it becomes the assessment's problem."""
    if candidate.problem is not None:
        return Assessment(candidate, candidate.problem)
    known = Assessment(candidate)
    try:
        plugin = load_backend(candidate, observers)
        spec = plugin.backend()
        known = attrs.evolve(known, plugin=plugin, spec=spec)
        variant = _check_spec(plugin, spec, candidate)
        known = attrs.evolve(known, variant=variant)
        chosen = _structure(spec, variant, options or {}, environ, origins or {})
        known = attrs.evolve(known, options=chosen)
        readiness = _probe(plugin, spec, candidate)
        known = attrs.evolve(known, readiness=readiness)
        if not readiness.ready:
            return attrs.evolve(known, problem=Problem(readiness.reason, readiness.fix))
        request = ProtocolRequest(spec, variant, chosen, environment_of(variant, environ))
        choice = plugin.choose_protocol(request)
        _check_choice(plugin, spec, variant, choice)
    except PDCoreError as error:
        return attrs.evolve(known, problem=problem_of(error), error=error)
    problem = None
    if choice.protocol is None:
        reasons = [f"{verdict.protocol}: {verdict.reason}" for verdict in choice.verdicts]
        problem = Problem(reasons[0] if reasons else "no protocol can be used", choice.fix)
    return attrs.evolve(known, choice=choice, problem=problem)


def problem_of(error: PDCoreError) -> Problem:
    """Return an error as one line for a table of verdicts, with its remedy."""
    return Problem(" ".join(f"{error.happened}: {error.there_is}".split()), error.to_do)


def _structure(
    spec: BackendSpec,
    variant: Variant | None,
    given: Mapping[str, object],
    environ: Mapping[str, str],
    origins: Mapping[str, Origin],
) -> object:
    defaults = variant.defaults if variant else {}

    def origin_of(option: str) -> str:
        if variant is not None and option in defaults and option not in given:
            return f"variant {variant.name}"
        return str(origins.get(f"backend_options.{option}", "code"))

    if variant is not None:
        check_conflicts(variant, environ, given, origin_of)
    return structure_options(spec.options, {**defaults, **given}, origin_of)


def _check_spec(plugin: BackendPlugin, spec: BackendSpec, candidate: Candidate) -> Variant | None:
    """Return the variant that the candidate's name stands for, None for the backend itself."""
    if spec.contract_version != CONTRACT_VERSION:
        newer = spec.contract_version > CONTRACT_VERSION
        raise PluginError(
            f"{candidate.project} was written for hook contract {spec.contract_version}",
            f"this pdcore speaks {CONTRACT_VERSION}",
            f"pip install --upgrade {'pdcore' if newer else candidate.project}",
        )
    if not attrs.has(spec.options):
        raise plugin.broken("its options are not an attrs class", repr(spec.options))
    for variant in spec.variants:
        if variant.protocol not in spec.protocols:
            raise plugin.broken(
                f"its variant {variant.name!r} asks for an undeclared protocol",
                f"{variant.protocol!r}, declared are {', '.join(spec.protocols)}",
            )
    if candidate.name == spec.name:
        return None
    for variant in spec.variants:
        if variant.name == candidate.name:
            return variant
    raise PluginError(
        f"{candidate.module} declares no backend or variant {candidate.name!r}",
        f"it declares {', '.join([spec.name, *(v.name for v in spec.variants)])}",
        f"report it to the authors of {candidate.project}",
    )


def _check_choice(
    plugin: BackendPlugin, spec: BackendSpec, variant: Variant | None, choice: ProtocolChoice
) -> None:
    allowed = [variant.protocol] if variant else [*spec.protocols]
    if choice.protocol is not None and choice.protocol not in allowed:
        raise plugin.broken(
            "its pd_choose_protocol chose a protocol that it must not",
            f"{choice.protocol!r}, where {', '.join(allowed)} would do",
        )


def _probe(plugin: BackendPlugin, spec: BackendSpec, candidate: Candidate) -> Readiness:
    try:
        readiness: object = spec.probe()
    except (PDCoreError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: a plugin does not end the process
        raise PluginError(
            f"the probe of {spec.name!r} failed",
            describe(error),
            f"report it to the authors of {candidate.project}",
        ) from error
    if not isinstance(readiness, Readiness):
        raise plugin.broken("its probe returned a wrong type", f"{readiness!r}, where Readiness is due")
    return readiness
