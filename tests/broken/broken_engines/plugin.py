"""The backend ``broken``: its option ``how`` says in which way."""

from __future__ import annotations

import attrs

from broken_engines.ways import WAYS
from pdcore.contract.backend import BackendSpec, InitEngineRequest
from pdcore.contract.engine import TransferEngine
from pdcore.contract.hookspecs import hookimpl
from pdcore.local.engine import CAPABILITIES, TRANSPORT


@attrs.frozen
class Options:
    how: str = attrs.field(validator=attrs.validators.in_(WAYS))


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec("broken", "wrong in one way", "the tests", (TRANSPORT,), CAPABILITIES, options=Options)


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    assert isinstance(request.options, Options)
    return WAYS[request.options.how](request.role)
