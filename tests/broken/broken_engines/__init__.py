"""Backends that are wrong in one way each, so that the conformance suite can be seen to notice."""

from __future__ import annotations

from pdcore.backend import BackendSpec
from pdcore.local.engine import CAPABILITIES, TRANSPORT


def spec(name: str, summary: str) -> BackendSpec:
    return BackendSpec(name, summary, "the tests", (TRANSPORT,), CAPABILITIES)
