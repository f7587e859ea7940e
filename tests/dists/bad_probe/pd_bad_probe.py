"""A backend whose probe ends the process."""

from __future__ import annotations

from pdcore.contract.backend import BackendSpec, InitEngineRequest, Readiness
from pdcore.contract.engine import EngineCapabilities, TransferEngine
from pdcore.contract.hookspecs import hookimpl
from pdcore.errors import EngineError


def probe() -> Readiness:
    raise SystemExit(4)


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec(
        name="bad_probe",
        summary="a fixture",
        runs_on="anything",
        protocols=("memory",),
        capabilities=EngineCapabilities(),
        probe=probe,
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    raise EngineError("it has no engine", "a fixture", "use another")
