"""The decode side: pairs with prefill ranks on first use, and receives each request's KV cache.

``manager`` carries out what its machine (:mod:`pdcore.protocol`) wants; ``receiver`` is one request as its
scheduler sees it, ``placement`` where that shall land. ``lookup`` finds prefill groups, ``facts`` is what is
known of them without a room; ``admission`` lets ranks write, ``revocation`` proves that lost ones do not.
"""

from pdcore.decode.manager import DecodeManager
from pdcore.decode.receiver import KVReceiver

__all__ = ["DecodeManager", "KVReceiver"]
