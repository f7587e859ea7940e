"""All that an author of a backend reads: the hooks, the engine to implement, and what both speak of.

``hookspecs`` is the guide to the hooks, ``engine`` to the engine, ``outcome`` to what a write may come to.
"""

from pdcore.contract.backend import (
    CONTRACT_VERSION,
    AuxRequest,
    AuxRoute,
    BackendSpec,
    InitEngineRequest,
    NoOptions,
    ProtocolChoice,
    ProtocolRequest,
    ProtocolVerdict,
    Readiness,
    StatePlan,
    StateRequest,
    Variant,
)
from pdcore.contract.budget import EntryBudget
from pdcore.contract.capabilities import EngineCapabilities
from pdcore.contract.engine import Peer, RawWrite, TransferEngine
from pdcore.contract.hookspecs import BackendHooks, RequiredHooks, hookimpl
from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.contract.regions import OffsetArray, Region, RegionInfo, WriteBatch
from pdcore.model import AuxTransport, Certainty, EffectiveTransport

__all__ = [
    "CONTRACT_VERSION",
    "AuxRequest",
    "AuxRoute",
    "AuxTransport",
    "BackendHooks",
    "BackendSpec",
    "Certainty",
    "EffectiveTransport",
    "EngineCapabilities",
    "EntryBudget",
    "Finished",
    "InitEngineRequest",
    "NoOptions",
    "OffsetArray",
    "Peer",
    "ProtocolChoice",
    "ProtocolRequest",
    "ProtocolVerdict",
    "Quiescence",
    "RawWrite",
    "Readiness",
    "Region",
    "RegionInfo",
    "RequiredHooks",
    "StatePlan",
    "StateRequest",
    "Transfer",
    "TransferEngine",
    "TransferState",
    "Variant",
    "WriteBatch",
    "hookimpl",
]
