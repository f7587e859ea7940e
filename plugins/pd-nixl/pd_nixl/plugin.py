"""The hooks of the NIXL backend. Its engine is not implemented in this version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdcore.backend import BackendSpec, InitEngineRequest, Readiness, Variant
from pdcore.engine import EngineCapabilities, TransferEngine
from pdcore.errors import EngineError
from pdcore.hookspecs import RequiredHooks, hookimpl

REASON = "the NIXL engine is not implemented in pd-nixl 0.1.0"
FIX = "select 'local' (CPU memory, one host), or install a later pd-nixl"


def probe() -> Readiness:
    """Refuse: there is no engine in this version."""
    return Readiness.no(REASON, FIX)


@hookimpl
def pd_backend() -> BackendSpec:
    """Declare the backend and its variants."""
    return BackendSpec(
        name="nixl",
        summary="NIXL (not implemented in this version)",
        runs_on="CPU and CUDA memory, over UCX",
        protocols=("ucx", "tcp", "libfabric", "posix"),
        capabilities=EngineCapabilities(),
        variants=(
            Variant("nixl_tcp", protocol="tcp"),
            Variant("nixl_libfabric", protocol="libfabric"),
            Variant("nixl_posix", protocol="posix"),
        ),
        probe=probe,
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    """Refuse, as the probe does."""
    raise EngineError(REASON, f"protocol {request.protocol!r} was asked for", FIX)


if TYPE_CHECKING:
    import pd_nixl.plugin as this

    _checked: RequiredHooks = this
