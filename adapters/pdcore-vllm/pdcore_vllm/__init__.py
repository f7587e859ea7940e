"""vLLM's KV connector over pdcore: ``--kv-transfer-config`` with ``"kv_connector": "PdcoreConnector"``."""

from __future__ import annotations

__version__ = "0.1.0"


def register() -> None:
    """Give the connector its name; vLLM calls this in each of its processes, perhaps twice."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    name = "PdcoreConnector"
    if name not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(name, "pdcore_vllm.connector", name)
