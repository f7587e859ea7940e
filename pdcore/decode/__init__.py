"""The decode side: pairs with prefill ranks on first use, and receives each request's KV cache.

``manager`` dials and pairs, ``receiver`` is one request and ``receivers`` are all, ``placement`` is where a
request shall land, ``source`` one prefill rank and ``group`` those that a request needs.
"""

from pdcore.decode.manager import DecodeManager
from pdcore.decode.receiver import KVReceiver

__all__ = ["DecodeManager", "KVReceiver"]
