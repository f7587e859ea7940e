"""Trying something in a process of its own: what could crash, hang, or not be undone here."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping

import attrs

from pdcore.host.shortage import free_descriptors

__all__ = ["Attempt", "attempt"]

SECONDS = 30.0
DESCRIPTORS = 24
PREPARE = "import json, os, sys; path, *given = map(json.loads, sys.argv[1:]); sys.path[:] = path\n"


@attrs.frozen
class Attempt:
    """What came of it: the ``value`` it printed last, as JSON; or None and ``error``, how it ended instead.

    ``log`` is all that it wrote to stderr.
    """

    value: object = None
    error: str = ""
    log: str = ""


def attempt(
    program: str,
    *given: object,
    hidden: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
) -> Attempt:
    """Run a program with this interpreter and module path; once per process for the same arguments.

    Args:
        program: Python, which finds its arguments in ``given``, and prints JSON in the end.
        given: what JSON can carry.
        hidden: what the names of the variables begin with that it gets from ``environ`` alone.
        environ: where those are; the others it gets from this process.
    """
    if free_descriptors() < DESCRIPTORS:
        return Attempt(
            error=f"cannot be tried: fewer than {DESCRIPTORS} file descriptors are free (ulimit -n)"
        )
    arguments = tuple(json.dumps(argument) for argument in (sys.path, *given))
    kept = [(name, value) for name, value in os.environ.items() if not name.startswith(hidden)]
    given_besides = [(name, value) for name, value in (environ or {}).items() if name.startswith(hidden)]
    return _attempt(PREPARE + program, arguments, tuple(sorted(kept + given_besides)))


@functools.cache
def _attempt(program: str, arguments: tuple[str, ...], environ: tuple[tuple[str, str], ...]) -> Attempt:
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, with a program of ours
            [sys.executable, "-c", program, *arguments],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return Attempt(error=f"does not end within {SECONDS:g} s")
    except subprocess.CalledProcessError as failure:
        last = (failure.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Attempt(error=f"ends with status {failure.returncode}: {last}", log=failure.stderr)
    said = (done.stdout.splitlines() or [""])[-1]
    try:
        return Attempt(json.loads(said), log=done.stderr)
    except json.JSONDecodeError:
        return Attempt(error=f"says {said!r}" if said else "says nothing", log=done.stderr)
