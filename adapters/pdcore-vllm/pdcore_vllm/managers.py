"""A rank's manager, and what lives beside it in its process: the bootstrap service, a metrics endpoint."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from pdcore import BootstrapServer, DecodeManager, PDCoreError, Pools, PrefillManager, Topology
from pdcore.address import parse_advertised
from pdcore.errors import BootstrapError
from pdcore.events import Subscriber
from pdcore_vllm.config import Settings
from pdcore_vllm.guard import contained, log

__all__ = ["Rank", "start_decode", "start_prefill"]


@attrs.frozen
class Rank:
    """A manager with its company. ``bootstrap`` is the address of the service where prefill registered."""

    manager: PrefillManager | DecodeManager
    bootstrap: str = ""
    server: BootstrapServer | None = None
    metrics: Callable[[], None] | None = None

    def close(self) -> None:
        """End all of it, the manager first; what cannot be ended in order is logged."""
        for end in (self.manager.close, self.server.close if self.server else None, self.metrics):
            if end is not None:
                contained(lambda: None)(end)()


def start_decode(settings: Settings, pools: Pools, topology: Topology) -> Rank:
    """Start the decode side of a rank.

    Raises:
        What :class:`~pdcore.DecodeManager` raises.
    """
    subscribers, metrics = _metrics(settings, topology)
    try:
        manager = DecodeManager(settings.backend, pools, topology, settings.config, subscribers)
    except BaseException:
        _end(metrics)
        raise
    log.info("decode %s runs on %s", topology, manager.engine.effective_transport)
    return Rank(manager, metrics=metrics)


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
        What :class:`~pdcore.PrefillManager` raises.
    """
    server, error = None, None
    if topology.unique_rank == 0:
        try:
            server = _serve(settings, engine_index)
        except PDCoreError as refused:
            error = refused
    address, why = agree((server.address if server else "", str(error) if error else ""))
    if error is not None:
        raise error
    if why:
        raise BootstrapError("the first rank has no bootstrap service", why, "see its log")
    subscribers, metrics = _metrics(settings, topology)
    config = settings.config
    if config.control.port:  # one machine may hold several ranks
        port = config.control.port + topology.unique_rank
        config = attrs.evolve(config, control=attrs.evolve(config.control, port=port))
    try:
        manager = PrefillManager(settings.backend, pools, topology, address, config, subscribers)
    except BaseException:
        _end(metrics)
        _end(server.close if server else None)
        raise
    log.info("prefill %s runs on %s, bootstrap %s", topology, manager.engine.effective_transport, address)
    return Rank(manager, address, server, metrics)


def _serve(settings: Settings, engine_index: int) -> BootstrapServer:
    config, port = settings.config, settings.bootstrap_port
    told = parse_advertised(config.advertise)[0] if config.advertise is not None else None
    port = port + engine_index if port else 0
    server = BootstrapServer(config.host, port, advertise=told, auth_key=config.auth_key)
    server.start()
    return server


def _metrics(settings: Settings, topology: Topology) -> tuple[list[Subscriber], Callable[[], None] | None]:
    """Serve the metrics of this rank, if that is wanted; return who counts, and how to end it."""
    if settings.metrics_port is None:
        return [], None
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
    log.info("pdcore's metrics of this rank: port %d", server.server_port)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5)

    return [PrometheusEvents(registry)], end


def _end(what: Callable[[], None] | None) -> None:
    if what is not None:
        what()
