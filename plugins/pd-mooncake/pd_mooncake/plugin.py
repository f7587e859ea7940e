"""The hooks of the Mooncake backend. Its engine is not implemented in this version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdcore.backend import BackendSpec, InitEngineRequest, Readiness, Variant
from pdcore.engine import EngineCapabilities, TransferEngine
from pdcore.errors import EngineError
from pdcore.hookspecs import RequiredHooks, hookimpl

REASON = "the Mooncake engine is not implemented in pd-mooncake 0.1.0"
FIX = "select 'local' (CPU memory, one host), or install a later pd-mooncake"


def probe() -> Readiness:
    """Refuse: there is no engine in this version."""
    return Readiness.no(REASON, FIX)


@hookimpl
def pd_backend() -> BackendSpec:
    """Declare the backend and its variants."""
    return BackendSpec(
        name="mooncake",
        summary="Mooncake (not implemented in this version)",
        runs_on="CPU, CUDA, EFA and Ascend builds of Mooncake",
        protocols=("rdma", "tcp", "efa", "ascend", "nvlink", "intra_nvlink"),
        capabilities=EngineCapabilities(),
        variants=(
            Variant("mooncake_tcp", protocol="tcp"),
            Variant("mooncake_rdma", protocol="rdma"),
            Variant("mooncake_efa", protocol="efa"),
            Variant("mooncake_ascend", protocol="ascend"),
            Variant("mooncake_nvlink", protocol="nvlink"),
            Variant("mooncake_intra_nvlink", protocol="intra_nvlink"),
        ),
        probe=probe,
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    """Refuse, as the probe does."""
    raise EngineError(REASON, f"protocol {request.protocol!r} was asked for", FIX)


if TYPE_CHECKING:
    import pd_mooncake.plugin as this

    _checked: RequiredHooks = this
