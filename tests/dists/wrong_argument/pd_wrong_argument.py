"""A backend with a hook argument that does not exist."""

from __future__ import annotations

from pdcore.contract.backend import BackendSpec, InitEngineRequest
from pdcore.contract.engine import EngineCapabilities, TransferEngine
from pdcore.contract.hookspecs import hookimpl
from pdcore.errors import EngineError


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec(
        name="wrong_argument",
        summary="a fixture",
        runs_on="anything",
        protocols=("memory",),
        capabilities=EngineCapabilities(),
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest, node: str) -> TransferEngine:
    raise EngineError("it has no engine", "a fixture", "use another")
