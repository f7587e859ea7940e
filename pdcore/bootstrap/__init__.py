"""How decode finds prefill: a small HTTP service where prefill ranks register under a lease."""

from pdcore.bootstrap.client import BootstrapClient
from pdcore.bootstrap.record import PrefillFacts, RankRecord, ReplicaQuery, RoomsRecord
from pdcore.bootstrap.server import BootstrapServer

__all__ = ["BootstrapClient", "BootstrapServer", "PrefillFacts", "RankRecord", "ReplicaQuery", "RoomsRecord"]
