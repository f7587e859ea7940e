"""What is where in one rank's memory, and what it means: KV pages, state, aux rows. Pure descriptions."""

from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.fingerprint import Fingerprint, model_fingerprint
from pdcore.layout.kv import Attention, KVBuffer, KVLayout
from pdcore.layout.page_order import PageOrder
from pdcore.layout.state import StateBuffer, StateComponent

__all__ = [
    "Attention",
    "AuxField",
    "AuxSchema",
    "Fingerprint",
    "KVBuffer",
    "KVLayout",
    "PageOrder",
    "StateBuffer",
    "StateComponent",
    "model_fingerprint",
]
