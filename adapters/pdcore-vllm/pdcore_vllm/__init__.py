"""vLLM's KV connector over pdcore: ``--kv-transfer-config`` with ``"kv_connector": "PdcoreConnector"``.

Importing this imports no vLLM; the connector comes when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdcore_vllm.connector import PdcoreConnector

__version__ = "0.1.0"

__all__ = ["PdcoreConnector", "__version__"]


def __getattr__(name: str) -> object:
    if name != "PdcoreConnector":
        raise AttributeError(f"module 'pdcore_vllm' has no attribute {name!r}")
    from pdcore_vllm.connector import PdcoreConnector

    return PdcoreConnector
