"""The native names that the double has."""

from .descriptors import EngineDesc as EngineDesc
from .descriptors import MemoryDesc as MemoryDesc
from .status import TransferStatus as TransferStatus
from .values import BackendConfig as BackendConfig
from .values import BackendType as BackendType
from .values import FabricBackendConfig as FabricBackendConfig
from .values import IOEngineConfig as IOEngineConfig
from .values import MemoryLocationType as MemoryLocationType
from .values import PeerFailureEvent as PeerFailureEvent
from .values import PeerFailureReason as PeerFailureReason
from .values import PollCqMode as PollCqMode
from .values import RdmaBackendConfig as RdmaBackendConfig
from .values import StatusCode as StatusCode
from .values import XgmiBackendConfig as XgmiBackendConfig
from .values import set_log_level as set_log_level
