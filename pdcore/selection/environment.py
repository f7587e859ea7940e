"""The environment that a variant owns: what contradicts it, and setting it while an engine starts."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pdcore.contract.backend import Variant
from pdcore.errors import EngineError, VariantConflictError
from pdcore.model import Deadline

__all__ = ["check_conflicts", "environment_of", "environment_set", "scoped_environment"]

log = logging.getLogger("pdcore.environment")

_process_environment = threading.Lock()


def check_conflicts(
    variant: Variant,
    environ: Mapping[str, str],
    options: Mapping[str, object],
    origin_of: Callable[[str], str],
) -> None:
    """Raise if the user's environment or options want something else than the variant.

    Raises:
        VariantConflictError: naming for each conflict what the variant does and what the user set.
    """
    conflicts: list[str] = []
    remedies: list[str] = []
    for name, value in variant.environment.items():
        if name in environ and environ[name] != value:
            does = f"clears {name}" if value is None else f"sets {name}={value}"
            conflicts.append(f"the variant {does}, the environment has {name}={environ[name]}")
            remedies.append(f"unset {name}")
    for name, why in variant.forbidden_environment.items():
        if name in environ:
            conflicts.append(
                f"the variant forbids {name} ({why}), the environment has {name}={environ[name]}"
            )
            remedies.append(f"unset {name}")
    for name, why in variant.forbidden_options.items():
        if name in options:
            conflicts.append(
                f"the variant forbids the option {name} ({why}), {origin_of(name)} has {name}={options[name]}"
            )
            remedies.append(f"take {name} out of {origin_of(name)}")
    if conflicts:
        raise VariantConflictError(
            f"{variant.name} ({variant.protocol}) and what was set by hand contradict each other",
            "; ".join(conflicts),
            f"{', '.join(remedies)}, or select another variant",
        )


def environment_of(variant: Variant | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that the variant's engine will see."""
    seen = dict(environ)
    for name, value in (variant.environment if variant else {}).items():
        if value is None:
            seen.pop(name, None)
        else:
            seen[name] = value
    return seen


@contextmanager
def scoped_environment(variant: Variant | None, deadline: Deadline) -> Iterator[None]:
    """Set the variant's environment in this process, and restore it afterwards.

    One engine starts at a time, for the environment belongs to the whole process: this lock is held
    while the engine starts.

    Raises:
        EngineError: another engine was still starting at the deadline.
    """
    if not _process_environment.acquire(timeout=deadline.remaining()):
        raise EngineError(
            "an engine could not start before its deadline",
            "another engine of this process is still starting",
            "start engines one after the other, or raise timeouts.engine_start",
        )
    try:
        owned = variant.environment if variant else {}
        if variant is not None:
            for name, value in owned.items():
                does = f"{name} is cleared" if value is None else f"{name}={value} is set"
                log.info("%s while the engine starts, by variant %s", does, variant.name)
        with environment_set(owned):
            yield
    finally:
        _process_environment.release()


@contextmanager
def environment_set(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of this process (None clears one), and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _apply(values)
        yield
    finally:
        _apply(before)


def _apply(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
