"""Whether two ranks fit together, and which rank sends what to whom. Pure functions of two descriptions."""

from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import pairing_misfits
from pdcore.pairing.topology import CPSenders, DPChoice, Topology

__all__ = ["CPSenders", "DPChoice", "PeerDescription", "Topology", "pairing_misfits"]
