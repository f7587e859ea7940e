"""What a manager is made of, checked before anything is started."""

from __future__ import annotations

from pdcore.arguments import callables, instance
from pdcore.config.records import SET_IN_CODE, Config
from pdcore.errors import ConfigError, ConfigProblem
from pdcore.memory.pools import Pools
from pdcore.pairing.topology import Topology
from pdcore.selection.select import Backend

__all__ = ["check_parts"]


def check_parts(
    backend: object, pools: object, topology: object, config: object, subscribers: object
) -> None:
    """Check the parts of a manager.

    Raises:
        ArgumentError: one is of another kind than is due.
        ConfigError: the configuration names another backend than the one handed in.
    """
    instance("the backend of a manager", backend, Backend, "hand in pdcore.select(name)")
    instance(
        "the pools of a manager", pools, Pools, "hand in Pools(layout, memory) or Pools.allocate(layout)"
    )
    instance("the topology of a manager", topology, Topology, "hand in Topology(), or with sizes and ranks")
    instance("the config of a manager", config, Config, "hand in Config(...), or load_config(...).config")
    callables("the subscribers of a manager", subscribers)
    assert isinstance(backend, Backend)
    assert isinstance(config, Config)
    if config.backend not in (None, backend.name):
        reason = f"must be {backend.name!r} like the backend handed in, or not set; is {config.backend!r}"
        raise ConfigError([ConfigProblem("backend", SET_IN_CODE, reason)])
