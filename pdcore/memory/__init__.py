"""The memory of one rank: its pools as the caller hands them in, aux rows in it, and digests of it."""

from pdcore.memory.metadata_buffers import AuxDataCodec, MetadataBuffers
from pdcore.memory.pools import Pools, StatePool

__all__ = ["AuxDataCodec", "MetadataBuffers", "Pools", "StatePool"]
