"""An observer that raises in one hook, ends the process in another, and answers in a third."""

from __future__ import annotations

from pdcore.contract.backend import AuxRoute, ProtocolRequest
from pdcore.contract.hookspecs import hookimpl
from pdcore.model import AuxTransport

seen: list[str] = []


@hookimpl
def pd_choose_protocol(request: ProtocolRequest) -> None:
    seen.append(f"choose for {request.spec.name}")
    raise RuntimeError("the observer is broken")


@hookimpl
def pd_init_engine() -> None:
    seen.append("init")
    raise SystemExit(5)


@hookimpl
def pd_aux_transport() -> AuxRoute:
    seen.append("aux")
    return AuxRoute(AuxTransport.ENGINE)
