"""A backend whose engine library is missing."""

from __future__ import annotations

from pdcore.backend import BackendSpec, InitEngineRequest, Readiness
from pdcore.engine import EngineCapabilities, TransferEngine
from pdcore.errors import EngineError
from pdcore.hookspecs import hookimpl


def probe() -> Readiness:
    return Readiness.no("libfixture.so.1 is missing", "apt-get install libfixture1")


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec(
        name="no_library",
        summary="a fixture",
        runs_on="anything",
        protocols=("memory",),
        capabilities=EngineCapabilities(),
        probe=probe,
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    raise EngineError("it has no engine", "a fixture", "use another")
