"""A rank's manager, and what lives beside it in its process: the bootstrap service, a metrics endpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import attrs

import pdcore
from pdcore import BootstrapServer, DecodeManager, Pools, PrefillManager, Topology
from pdcore.address import parse_advertised
from pdcore.errors import BootstrapError
from pdcore.events import Subscriber
from pdcore_vllm.config import Settings
from pdcore_vllm.guard import contained, log

__all__ = ["Rank", "start_decode", "start_prefill"]


@attrs.frozen
class Rank:
    """A manager with its company. ``bootstrap`` is the address of the service where prefill registered;
    ``serves`` tells whether it is here."""

    manager: PrefillManager | DecodeManager
    _company: ExitStack
    bootstrap: str = ""
    serves: bool = False

    def close(self) -> None:
        """End all of it, the manager first; what cannot be ended in order is logged."""
        contained(lambda: None)(self.manager.close)()
        contained(lambda: None)(self._company.close)()


def start_decode(settings: Settings, pools: Pools, topology: Topology) -> Rank:
    """Start the decode side of a rank.

    Raises:
        What :func:`~pdcore.select` and :class:`~pdcore.DecodeManager` raise.
    """
    with ExitStack() as company:
        subscribers = _metrics(settings, topology, company)
        backend = pdcore.select(settings.loaded)
        manager = DecodeManager(backend, pools, topology, settings.config, subscribers)
        log.info("decode %s runs on %s", topology, manager.engine.effective_transport)
        return Rank(manager, company.pop_all())


def start_prefill(
    settings: Settings,
    pools: Pools,
    topology: Topology,
    agree: Callable[[tuple[str, str]], tuple[str, str]],
    engine_index: int = 0,
) -> Rank:
    """Start the prefill side of a rank; the first one starts the bootstrap service of the group.

    ``agree`` brings what the first rank says to all others: an address, or why there is none. The service is
    of one engine: engines that run data-parallel have one each.

    Raises:
        BootstrapError, AddressError: the service cannot be started, on this rank or on the first.
        What :func:`~pdcore.select` and :class:`~pdcore.PrefillManager` raise.
    """
    serves, address, error = topology.unique_rank == 0, "", None
    with ExitStack() as company:
        if serves:
            try:
                address = company.enter_context(_server(settings, engine_index)).address
            except Exception as failure:  # first the others must hear of it, who wait
                error = failure
        address, why = agree((address, str(error) if error is not None else ""))
        if error is not None:
            raise error
        if why:
            raise BootstrapError("the first rank has no bootstrap service", why, "see the first rank's log")
        subscribers = _metrics(settings, topology, company)
        config, backend = _of_rank(settings.config, topology), pdcore.select(settings.loaded)
        manager = PrefillManager(backend, pools, topology, address, config, subscribers)
        log.info("prefill %s runs on %s, bootstrap %s", topology, manager.engine.effective_transport, address)
        return Rank(manager, company.pop_all(), address, serves)


def _of_rank(config: pdcore.Config, topology: Topology) -> pdcore.Config:
    """Return the configuration of one rank: one machine may hold several, and each has a port of its own."""
    port = config.control.port
    if not port:
        return config
    return attrs.evolve(config, control=attrs.evolve(config.control, port=port + topology.unique_rank))


def _server(settings: Settings, engine_index: int) -> BootstrapServer:
    config, port = settings.config, settings.bootstrap_port
    told = parse_advertised(config.advertise)[0] if config.advertise is not None else None
    port = port + engine_index if port else 0
    return BootstrapServer(config.host, port, advertise=told, auth_key=config.auth_key)


def _metrics(settings: Settings, topology: Topology, company: ExitStack) -> list[Subscriber]:
    """Serve the metrics of this rank, if that is wanted; return who counts."""
    if settings.metrics_port is None:
        return []
    from prometheus_client import CollectorRegistry, start_http_server

    from pdcore.telemetry.prometheus import PrometheusEvents

    registry = CollectorRegistry()
    port = settings.metrics_port + topology.unique_rank if settings.metrics_port else 0
    try:
        server, thread = start_http_server(port, settings.config.host, registry)
    except OSError as error:
        raise BootstrapError(
            f"pdcore's metrics cannot be served on {settings.config.host} port {port}",
            str(error),
            "choose another metrics_port: each rank takes the next one",
        ) from error
    company.callback(thread.join, 5)
    company.callback(server.server_close)
    company.callback(server.shutdown)
    log.info("pdcore's metrics of rank %d: port %d", topology.unique_rank, server.server_port)
    return [PrometheusEvents(registry)]
