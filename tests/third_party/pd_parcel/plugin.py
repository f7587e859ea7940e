"""The hooks of the backend ``parcel``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs.validators import gt

from pd_parcel.engine import CAPABILITIES, TRANSPORT, ParcelEngine
from pdcore.contract.backend import BackendSpec, InitEngineRequest
from pdcore.contract.hookspecs import RequiredHooks, hookimpl


@attrs.frozen
class ParcelOptions:
    """``patience``: seconds of silence after which a peer is given up."""

    patience: float = attrs.field(default=8.0, validator=gt(0.0))


@hookimpl
def pd_backend() -> BackendSpec:
    """Host memory of any two machines that reach one another by TCP."""
    summary = "pages in parcels over TCP, by somebody else"
    return BackendSpec(
        "parcel", summary, "CPU memory, any host", (TRANSPORT,), CAPABILITIES, options=ParcelOptions
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> ParcelEngine:
    """Listens on ``request.host``, any port."""
    assert isinstance(request.options, ParcelOptions)
    return ParcelEngine(request.host, request.options.patience)


if TYPE_CHECKING:
    import pd_parcel.plugin as this

    _checked: RequiredHooks = this
