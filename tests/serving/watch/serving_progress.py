"""NIXL's progress threads wait between two looks, in servers over vLLM's own NixlConnector.

NIXL's Python API lets them spin (``pthrDelay = 0``, without an option), one core per agent: two agents leave
two cores nothing for the models, and the connector a rate that says nothing about it. ``SERVING_PROGRESS``
holds the microseconds to wait; vLLM calls ``slow_down`` in each of its processes, as it does for any plugin.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

MICROSECONDS = os.environ.get("SERVING_PROGRESS")


def slow_down() -> None:
    """Make each agent of this process be created with that wait."""
    if MICROSECONDS is None:
        return
    bindings: Any = import_module("nixl_cu12._bindings")
    create = bindings.nixlAgent

    def nixl_agent(name: str, config: Any) -> Any:
        config.pthrDelay = int(MICROSECONDS)
        return create(name, config)

    bindings.nixlAgent = nixl_agent
