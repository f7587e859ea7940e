"""The hooks of the MORI-IO backend. Its engine is not implemented in this version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdcore.backend import BackendSpec, InitEngineRequest, Readiness, Variant
from pdcore.engine import EngineCapabilities, TransferEngine
from pdcore.errors import EngineError
from pdcore.hookspecs import RequiredHooks, hookimpl

REASON = "the MORI-IO engine is not implemented in pd-mori 0.1.0"
FIX = "select 'local' (CPU memory, one host), or install a later pd-mori"


def probe() -> Readiness:
    """Refuse: there is no engine in this version."""
    return Readiness.no(REASON, FIX)


@hookimpl
def pd_backend() -> BackendSpec:
    """Declare the backend and its variants."""
    return BackendSpec(
        name="mori",
        summary="MORI-IO (not implemented in this version)",
        runs_on="AMD GPUs with RDMA devices",
        protocols=("rdma", "xgmi"),
        capabilities=EngineCapabilities(),
        variants=(Variant("mori_xgmi", protocol="xgmi"),),
        probe=probe,
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    """Refuse, as the probe does."""
    raise EngineError(REASON, f"protocol {request.protocol!r} was asked for", FIX)


if TYPE_CHECKING:
    import pd_mori.plugin as this

    _checked: RequiredHooks = this
