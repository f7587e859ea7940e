"""What vLLM calls in each of its processes: the connector gets its name."""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

__all__ = ["NAME", "register"]

NAME = "PdcoreConnector"


def register() -> None:
    """Register ``PdcoreConnector`` with vLLM, which loads its module only where it is used; idempotent."""
    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, "pdcore_vllm.connector", NAME)
