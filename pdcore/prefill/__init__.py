"""The prefill side: accepts decode ranks, and sends each request's KV cache to whom it was promised.

``manager`` listens and pairs, ``sender`` is one request and ``senders`` are all, ``supply`` is what a
request was given, ``link`` one decode rank with its lanes, ``delivery`` and ``transfer`` are one chunk on
its way. ``reception`` brings requests of decode and rooms together, ``early_requests`` keeps those that came
before their room.
``registration`` keeps the rank known to the bootstrap service.
"""

from pdcore.prefill.delivery import TransferKVChunk
from pdcore.prefill.manager import PrefillManager
from pdcore.prefill.registration import Announce
from pdcore.prefill.sender import KVSender

__all__ = ["Announce", "KVSender", "PrefillManager", "TransferKVChunk"]
