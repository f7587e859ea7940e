"""The decode side: pairs with prefill ranks on first use, and receives each request's KV cache.

``manager`` dials and pairs, ``receiver`` is one request, ``source`` one prefill rank.
"""

from pdcore.decode.manager import DecodeManager
from pdcore.decode.receiver import KVReceiver

__all__ = ["DecodeManager", "KVReceiver"]
