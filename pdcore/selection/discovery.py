"""Which backends and observers are installed, from metadata alone: nothing is imported here.

What is wrong with a candidate becomes a value, so that it never hides another one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

import attrs
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from pdcore.contract.hookspecs import BACKEND_GROUP, OBSERVER_GROUP

__all__ = ["Candidate", "Discovery", "Problem", "discover"]

ALLOW_VARIABLE = "PDCORE_PLUGINS"
DENY_VARIABLE = "PDCORE_DISABLE"
MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@attrs.frozen
class Problem:
    """Why a candidate cannot be used, and the command or change that helps."""

    reason: str
    fix: str


@attrs.frozen
class Candidate:
    """One entry point: the name a user types, who registers it, and the module to import.

    ``problem`` is what metadata alone already tells against it.
    """

    name: str
    project: str
    version: str
    module: str
    problem: Problem | None = None

    @property
    def distribution(self) -> str:
        """The distribution with its version: ``pd-example 0.1.0``."""
        return f"{self.project} {self.version}"


@attrs.frozen
class Discovery:
    """Everything that is installed, sorted by name; ``notes`` tell of what else was noticed."""

    backends: tuple[Candidate, ...]
    observers: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the backends, each once."""
        return tuple(dict.fromkeys(c.name for c in self.backends))


def discover(environ: Mapping[str, str] | None = None, path: Sequence[str] | None = None) -> Discovery:
    """Read the entry points of all installed distributions.

    Args:
        environ: where PDCORE_PLUGINS (only these names or distributions; empty: none) and
            PDCORE_DISABLE (none of these, and it wins) are looked up; ``os.environ`` by default.
        path: the directories to look in, ``sys.path`` by default.
    """
    environ = os.environ if environ is None else environ
    where = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    groups: dict[str, dict[str, list[Candidate]]] = {BACKEND_GROUP: {}, OBSERVER_GROUP: {}}
    notes = [note for distribution in where if (note := _read(distribution, groups))]
    backends, observers = (
        [candidate for candidates in groups[group].values() for candidate in candidates]
        for group in (BACKEND_GROUP, OBSERVER_GROUP)
    )
    notes += [
        f"{variable} names {word!r}, which is not installed"
        for variable in (ALLOW_VARIABLE, DENY_VARIABLE)
        for word in _words(environ.get(variable, ""))
        if not any(_matches(word, candidate) for candidate in backends + observers)
    ]
    return Discovery(_judged(backends, environ), _judged(observers, environ), tuple(notes))


def _read(
    distribution: metadata.Distribution, groups: Mapping[str, dict[str, list[Candidate]]]
) -> str | None:
    """Add what a distribution registers, under its canonical name; return a note if it is unreadable."""
    try:
        if not any(group in (distribution.read_text("entry_points.txt") or "") for group in groups):
            return None
        project, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if not project or not version:
            raise ValueError("it has no name or no version")
        misfit = _misfit(project, distribution.requires or [])
        for group, found in groups.items():
            # The first distribution of a name hides later ones, as it does for imports.
            found.setdefault(
                canonicalize_name(project),
                [
                    Candidate(entry.name, project, version, entry.value, _misnamed(entry, project) or misfit)
                    for entry in distribution.entry_points
                    if entry.group == group
                ],
            )
    except Exception as error:  # whatever is wrong with one distribution is not wrong with the others
        return f"unreadable metadata in {distribution.locate_file('')}, left out: {error}"
    return None


def _misnamed(entry: metadata.EntryPoint, project: str) -> Problem | None:
    if MODULE_NAME.fullmatch(entry.value):
        return None
    return Problem(
        f"its entry point is {entry.value!r}, which is not a module", f"report it to the authors of {project}"
    )


def _misfit(project: str, requirements: Iterable[str]) -> Problem | None:
    reasons: list[str] = []
    wanted: list[str] = []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return Problem(
                f"its requirement {text!r} cannot be read", f"report it to the authors of {project}"
            )
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            reasons.append(f"needs {requirement.name}, which is not installed")
        else:
            if requirement.specifier.contains(installed, prereleases=True):
                continue
            reasons.append(f"needs {requirement.name}{requirement.specifier}, but {installed} is installed")
        wanted.append(f"'{requirement.name}{requirement.specifier}'")
    return Problem("; ".join(reasons), f"pip install {' '.join(wanted)}") if reasons else None


def _words(value: str) -> list[str]:
    return [word.strip() for word in value.split(",") if word.strip()]


def _matches(word: str, candidate: Candidate) -> bool:
    return word == candidate.name or canonicalize_name(word) == canonicalize_name(candidate.project)


def _judged(candidates: Iterable[Candidate], environ: Mapping[str, str]) -> tuple[Candidate, ...]:
    switched = [
        attrs.evolve(candidate, problem=_switched_off(candidate, environ) or candidate.problem)
        for candidate in candidates
    ]
    usable: dict[str, list[Candidate]] = {}
    for candidate in sorted(switched, key=lambda c: c.project):
        if candidate.problem is None:
            usable.setdefault(candidate.name, []).append(candidate)
    clashes = {name: _clash(claimants) for name, claimants in usable.items() if len(claimants) > 1}
    return tuple(
        attrs.evolve(candidate, problem=candidate.problem or clashes.get(candidate.name))
        for candidate in sorted(switched, key=lambda c: (c.name, c.project))
    )


def _switched_off(candidate: Candidate, environ: Mapping[str, str]) -> Problem | None:
    allowed, denied = environ.get(ALLOW_VARIABLE), environ.get(DENY_VARIABLE, "")
    if any(_matches(word, candidate) for word in _words(denied)):
        return Problem(f"switched off by {DENY_VARIABLE}={denied}", f"take it out of {DENY_VARIABLE}")
    if allowed is not None and not any(_matches(word, candidate) for word in _words(allowed)):
        return Problem(
            f"not among {ALLOW_VARIABLE}={allowed}", f"add {candidate.name} to {ALLOW_VARIABLE}, or unset it"
        )
    return None


def _clash(claimants: Sequence[Candidate]) -> Problem:
    return Problem(
        f"the name is claimed by {' and by '.join(c.distribution for c in claimants)}",
        f"pip uninstall {' or '.join(c.project for c in claimants)}, or name one of them in {DENY_VARIABLE}",
    )
