"""A rank's manager, and what lives beside it in its process: the bootstrap service."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pdcore
from pdcore import BootstrapServer, DecodeManager, Pools, PrefillManager, Topology
from pdcore.errors import BootstrapError
from pdcore.host.address import parse_advertised
from pdcore_vllm.config import Settings
from pdcore_vllm.log import log

__all__ = ["Agree", "start"]

Agree = Callable[[tuple[str, str]], tuple[str, str]]
"""Brings what the first rank of an engine says to all others."""


def start(
    settings: Settings, pools: Pools, topology: Topology, agree: Agree | None, engine: int
) -> tuple[PrefillManager | DecodeManager, str, ExitStack]:
    """Start a rank of prefill, whose first one starts the engine's bootstrap service; or of decode, where
    ``agree`` is None. Return its manager, the service's address, and what to close in the end.

    Raises:
        BootstrapError, AddressError: the service cannot be started, on this rank or on the first.
        What :func:`~pdcore.select` and the managers raise.
    """
    address, error, config, rank = "", None, settings.loaded.config, topology.unique_rank
    with ExitStack() as company:
        if agree is not None and rank == 0:
            try:
                address = company.enter_context(_service(settings, engine)).address
            except Exception as failure:  # first the others must hear of it, who wait
                error = failure
        if agree is not None:
            address, why = agree((address, "" if error is None else str(error)))
            if why:
                raise error or BootstrapError("the first rank has no bootstrap service", why, "see its log")
        backend = pdcore.select(settings.loaded)
        config = config.of_process(engine * topology.group_size + rank)
        manager: PrefillManager | DecodeManager
        if agree is not None:
            manager = PrefillManager(backend, pools, topology, address, config)
        else:
            manager = DecodeManager(backend, pools, topology, config)
        company.callback(manager.close)
        log.info("%s rank %d on %s %s", manager.role.value, rank, manager.engine.effective_transport, address)
        return manager, address, company.pop_all()


def _service(settings: Settings, engine: int) -> BootstrapServer:
    config, port = settings.loaded.config, settings.own.bootstrap_port
    told = parse_advertised(config.advertise)[0] if config.advertise is not None else None
    port = port + engine if port else 0
    return BootstrapServer(config.host, port, advertise=told, auth_key=config.auth_key)
