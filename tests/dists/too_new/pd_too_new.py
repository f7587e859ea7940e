"""A backend written for a later hook contract."""

from __future__ import annotations

from pdcore.contract.backend import BackendSpec, InitEngineRequest
from pdcore.contract.engine import EngineCapabilities, TransferEngine
from pdcore.contract.hookspecs import hookimpl
from pdcore.errors import EngineError


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec(
        name="too_new",
        summary="a fixture",
        runs_on="anything",
        protocols=("memory",),
        capabilities=EngineCapabilities(),
        contract_version=2,
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    raise EngineError("it has no engine", "a fixture", "use another")
