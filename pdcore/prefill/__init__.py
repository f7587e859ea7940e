"""The prefill side: accepts decode ranks, and sends each request's KV cache to whom it was promised.

``manager`` listens, and carries out what its machine (:mod:`pdcore.protocol`) wants; ``sender`` is one room
as its scheduler sees it. ``facts`` tells what a decode rank means to this one, ``links`` has them with their
``lanes``, ``shipping`` gives chunks to those. ``verification`` tells decode what was sent, ``registration``
keeps the rank known to bootstrap.
"""

from pdcore.prefill.manager import PrefillManager
from pdcore.prefill.registration import Announce
from pdcore.prefill.sender import KVSender
from pdcore.protocol.chunk import TransferKVChunk

__all__ = ["Announce", "KVSender", "PrefillManager", "TransferKVChunk"]
