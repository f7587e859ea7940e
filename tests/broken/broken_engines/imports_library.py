"""A plugin that imports its engine's library at the top."""

from __future__ import annotations

import fake_engine_library

from pdcore.contract.backend import BackendSpec, InitEngineRequest
from pdcore.contract.engine import TransferEngine
from pdcore.contract.hookspecs import hookimpl
from pdcore.local.engine import CAPABILITIES, TRANSPORT


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec("broken_import", "imports too early", "the tests", (TRANSPORT,), CAPABILITIES)


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    raise NotImplementedError(fake_engine_library.__name__)
