"""What can be configured, where values come from, and the key that all who may speak share.

``records`` are the values with their defaults, ``sources`` fill them from code, command line, environment and
file, ``structuring`` makes untyped values typed ones.
"""

from pdcore.config.auth_key import AuthKey
from pdcore.config.records import (
    Config,
    ControlConfig,
    LivenessConfig,
    QuarantineConfig,
    Timeouts,
    TransferConfig,
    TransferModel,
)
from pdcore.config.sources import load_config

__all__ = [
    "AuthKey",
    "Config",
    "ControlConfig",
    "LivenessConfig",
    "QuarantineConfig",
    "Timeouts",
    "TransferConfig",
    "TransferModel",
    "load_config",
]
