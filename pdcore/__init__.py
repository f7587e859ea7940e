"""Moves the KV cache of large language models from prefill to decode workers.

This is the door for users; every name loads its module on first use, so that importing pdcore is
quick and touches no engine, no torch and no entry point. Authors of backends find theirs in
:mod:`pdcore.contract`, and for their tests in :mod:`pdcore.testing`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdcore.bootstrap import BootstrapServer, PrefillFacts
    from pdcore.config import (
        Config,
        ControlConfig,
        LivenessConfig,
        QuarantineConfig,
        Timeouts,
        TransferConfig,
        TransferModel,
        load_config,
    )
    from pdcore.contract.regions import Region
    from pdcore.decode import DecodeManager, KVReceiver
    from pdcore.errors import (
        AddressError,
        ArgumentError,
        AuthenticationError,
        BootstrapError,
        ConfigError,
        EngineError,
        FailureCode,
        ForkedError,
        IncompatiblePeerError,
        KVTransferError,
        LayoutError,
        PDCoreError,
        PlanError,
        RoomError,
        SelectionError,
        TransportMismatchError,
        VariantConflictError,
    )
    from pdcore.events.metrics import RequestMetrics
    from pdcore.layout import (
        Attention,
        AuxField,
        AuxSchema,
        Fingerprint,
        KVBuffer,
        KVLayout,
        PageOrder,
        StateBuffer,
        StateComponent,
    )
    from pdcore.managers.health import Health
    from pdcore.memory import AuxDataCodec, MetadataBuffers, Pools, StatePool
    from pdcore.model import CPU, Deadline, Device, DeviceKind, KVPoll, Role, RoomId
    from pdcore.pairing import CPSenders, DPChoice, Topology
    from pdcore.prefill import Announce, KVSender, PrefillManager, TransferKVChunk
    from pdcore.selection import Backend, select

__version__ = "0.1.0"

_HOMES = {
    "bootstrap": ("BootstrapServer", "PrefillFacts"),
    "config": (
        "Config",
        "ControlConfig",
        "LivenessConfig",
        "QuarantineConfig",
        "Timeouts",
        "TransferConfig",
        "TransferModel",
        "load_config",
    ),
    "contract.regions": ("Region",),
    "decode": ("DecodeManager", "KVReceiver"),
    "errors": (
        "ArgumentError",
        "AddressError",
        "AuthenticationError",
        "BootstrapError",
        "ConfigError",
        "EngineError",
        "FailureCode",
        "ForkedError",
        "IncompatiblePeerError",
        "KVTransferError",
        "LayoutError",
        "PDCoreError",
        "PlanError",
        "RoomError",
        "SelectionError",
        "TransportMismatchError",
        "VariantConflictError",
    ),
    "events.metrics": ("RequestMetrics",),
    "layout": (
        "Attention",
        "AuxField",
        "AuxSchema",
        "Fingerprint",
        "KVBuffer",
        "KVLayout",
        "PageOrder",
        "StateBuffer",
        "StateComponent",
    ),
    "managers.health": ("Health",),
    "memory": ("AuxDataCodec", "MetadataBuffers", "Pools", "StatePool"),
    "model": ("CPU", "Deadline", "Device", "DeviceKind", "KVPoll", "Role", "RoomId"),
    "pairing": ("CPSenders", "DPChoice", "Topology"),
    "prefill": ("Announce", "KVSender", "PrefillManager", "TransferKVChunk"),
    "selection": ("Backend", "select"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CPU",
    "AddressError",
    "Announce",
    "ArgumentError",
    "Attention",
    "AuthenticationError",
    "AuxDataCodec",
    "AuxField",
    "AuxSchema",
    "Backend",
    "BootstrapError",
    "BootstrapServer",
    "CPSenders",
    "Config",
    "ConfigError",
    "ControlConfig",
    "DPChoice",
    "Deadline",
    "DecodeManager",
    "Device",
    "DeviceKind",
    "EngineError",
    "FailureCode",
    "Fingerprint",
    "ForkedError",
    "Health",
    "IncompatiblePeerError",
    "KVBuffer",
    "KVLayout",
    "KVPoll",
    "KVReceiver",
    "KVSender",
    "KVTransferError",
    "LayoutError",
    "LivenessConfig",
    "MetadataBuffers",
    "PDCoreError",
    "PageOrder",
    "PlanError",
    "Pools",
    "PrefillFacts",
    "PrefillManager",
    "QuarantineConfig",
    "Region",
    "RequestMetrics",
    "Role",
    "RoomError",
    "RoomId",
    "SelectionError",
    "StateBuffer",
    "StateComponent",
    "StatePool",
    "Timeouts",
    "Topology",
    "TransferConfig",
    "TransferKVChunk",
    "TransferModel",
    "TransportMismatchError",
    "VariantConflictError",
    "__version__",
    "load_config",
    "select",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'pdcore' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"pdcore.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
