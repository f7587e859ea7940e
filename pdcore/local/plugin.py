"""The hooks of the embedded backend."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pdcore import __version__
from pdcore.contract.backend import AuxRequest, AuxRoute, BackendSpec, InitEngineRequest, Readiness
from pdcore.contract.engine import TransferEngine
from pdcore.contract.hookspecs import RequiredHooks, hookimpl
from pdcore.local.address import PERMISSION_FIX
from pdcore.local.engine import CAPABILITIES, TRANSPORT, LocalEngine
from pdcore.local.kernel import can_trace_any, self_test, yama_scope
from pdcore.local.options import LocalOptions
from pdcore.model import AuxTransport

NO_PTRACE_AT_ALL = 3
"""The Yama scope that no capability overrides; from 2 on CAP_SYS_PTRACE is needed."""


def probe() -> Readiness:
    """Look whether this process may write to another one's memory."""
    if sys.platform != "linux":
        return Readiness.no(f"process_vm_writev is Linux's, this is {sys.platform}", "run it on Linux")
    try:
        self_test()
    except OSError as error:
        return Readiness.no(
            f"the kernel refuses process_vm_writev or pidfd_open: {error.strerror or error}",
            "allow both in the seccomp profile (`docker run --cap-add SYS_PTRACE`), on Linux 5.3 or newer",
        )
    return judge_yama(yama_scope(), capable=can_trace_any())


def judge_yama(scope: int, *, capable: bool) -> Readiness:
    """Return what a machine's ``ptrace_scope`` means, with or without CAP_SYS_PTRACE."""
    if scope >= NO_PTRACE_AT_ALL:
        return Readiness.no(
            f"yama ptrace_scope is {scope}: no process may touch another",
            "boot with kernel.yama.ptrace_scope below 3; it cannot be lowered until then",
        )
    if scope == NO_PTRACE_AT_ALL - 1 and not capable:
        return Readiness.no(f"yama ptrace_scope is {scope}, and CAP_SYS_PTRACE is missing", PERMISSION_FIX)
    return Readiness.yes()


@hookimpl
def pd_backend() -> BackendSpec:
    """Declare the backend."""
    return BackendSpec(
        name="local",
        summary="copies between processes of one host, without library or hardware",
        runs_on="Linux, CPU memory, one host",
        protocols=(TRANSPORT,),
        capabilities=CAPABILITIES,
        options=LocalOptions,
        probe=probe,
        engine_version=lambda: f"pdcore {__version__}",
    )


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    """Start an engine."""
    assert isinstance(request.options, LocalOptions)
    return LocalEngine(request.options)


@hookimpl
def pd_aux_transport(request: AuxRequest) -> AuxRoute:
    """Send aux rows through the engine: they are host memory too."""
    return AuxRoute(AuxTransport.ENGINE)


if TYPE_CHECKING:
    import pdcore.local.plugin as this

    _checked: RequiredHooks = this
