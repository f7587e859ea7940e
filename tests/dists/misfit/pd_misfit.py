"""A backend whose requirements are not met."""

from __future__ import annotations

from pdcore.backend import BackendSpec, InitEngineRequest
from pdcore.engine import EngineCapabilities, TransferEngine
from pdcore.errors import EngineError
from pdcore.hookspecs import hookimpl


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec(
        name="misfit",
        summary="a fixture",
        runs_on="anything",
        protocols=("memory",),
        capabilities=EngineCapabilities(),
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    raise EngineError("it has no engine", "a fixture", "use another")
