"""IOEngine: the wrapper and the native engine in one, with the detectors at its border."""

from __future__ import annotations

import ctypes
import os
import socket
import uuid
import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any

from . import faults
from .binding import Int32, UInt64, binding
from .core import Core
from .descriptors import EngineDesc, EngineFields, MemoryDesc, MemoryFields, made
from .findings import ends, report
from .flights import check_deregistration
from .status import TransferStatus, wait_all
from .submission import submit
from .values import (
    BackendConfig,
    BackendType,
    FabricBackendConfig,
    IOEngineConfig,
    MemoryLocationType,
    PeerFailureEvent,
    RdmaBackendConfig,
    StatusCode,
    XgmiBackendConfig,
)

NO_DEVICE = "no active RDMA device on this host; set MORI_DISABLE_AUTO_XGMI=0 to enable XGMI-only fallback"
DEFAULTS = [
    (BackendType.RDMA, RdmaBackendConfig),
    (BackendType.XGMI, XgmiBackendConfig),
    (BackendType.FABRIC, FabricBackendConfig),
]


class IOEngine:
    """Ends its threads when it is collected, as the real one does in its destructor."""

    @binding
    def __init__(self, key: str, config: IOEngineConfig) -> None:
        self._core = Core(key, config.host)
        self._port = config.port
        self._memory_ids, self._uids = count(), count()
        weakref.finalize(self, self._core.close).atexit = False

    def get_engine_desc(self) -> EngineDesc:
        core = self._core
        node, port = str(uuid.UUID(int=uuid.getnode())), core.owner.port if core.owner else 0
        return made(
            EngineDesc, EngineFields(core.key, node, socket.gethostname(), core.host, port, os.getpid())
        )

    def create_backend(self, type: BackendType, config: BackendConfig | None = None) -> None:  # noqa: A002
        if config is None:
            config = next((default() for known, default in DEFAULTS if known is type), None)
            if config is None:
                raise NotImplementedError("backend not implemented yet")
        self._create_backend(type, config)

    @binding
    def _create_backend(self, kind: BackendType, config: BackendConfig, /) -> None:
        if kind == BackendType.TCP or kind == BackendType.Unknown:
            raise ends("would abort", 'CreateBackend: Assertion `false && "not implemented"\' failed')
        if kind != BackendType.RDMA or not isinstance(config, RdmaBackendConfig) or self._core.config:
            return  # XGMI and FABRIC move nothing without a GPU; a second backend is skipped
        if faults.no_device:
            raise RuntimeError(NO_DEVICE)
        if reason := config._refusal():
            raise RuntimeError(f"Invalid RDMA config: {reason}")
        self._core.listen(self._port)
        self._core.config = config

    @binding
    def remove_backend(self, type: BackendType) -> None:  # noqa: A002
        if type == BackendType.RDMA:
            self._core.config = None

    @binding
    def register_remote_engine(self, engine_desc: EngineDesc) -> None:
        self._core.remotes[engine_desc.key] = engine_desc

    @binding
    def deregister_remote_engine(self, engine_desc: EngineDesc) -> None:
        self._core.remotes.pop(engine_desc.key, None)

    def register_memory(self, ptr: int, size: int, device_id: int, mem_loc: MemoryLocationType) -> MemoryDesc:
        address = ctypes.c_void_p(ptr).value
        if not address:
            raise ValueError("PyCapsule_New called with null pointer")
        return self._register_memory(address, size, device_id, mem_loc)

    @binding
    def _register_memory(
        self, address: UInt64, size: UInt64, device_id: Int32, location: MemoryLocationType, /
    ) -> MemoryDesc:
        core, number = self._core, next(self._memory_ids)
        if twins := [desc.id for desc in core.regions.values() if desc.data == address]:
            report("same base twice", f"engine {core.key}: memory {number} begins where {twins} does")
        fields = MemoryFields(
            core.key, number, device_id, data=address, size=size, loc=int(location), numa_node=0
        )
        desc = core.regions[number] = made(MemoryDesc, fields)
        if core.config is not None:
            core.visible.add(number)
        return desc

    @binding
    def deregister_memory(self, mem_desc: MemoryDesc) -> None:
        check_deregistration((self._core.key, mem_desc.id))
        self._core.regions.pop(mem_desc.id, None)

    def allocate_transfer_uid(self) -> int:
        return next(self._uids)

    def batch_write(self, *args: Any) -> list[TransferStatus]:
        return self._batch_write(*args)

    @binding
    def _batch_write(
        self,
        local: Sequence[MemoryDesc],
        local_offsets: Sequence[Sequence[UInt64]],
        remote: Sequence[MemoryDesc],
        remote_offsets: Sequence[Sequence[UInt64]],
        sizes: Sequence[Sequence[UInt64]],
        uids: Sequence[UInt64],
        /,
    ) -> list[TransferStatus]:
        counts = [*map(len, (local, local_offsets, remote, remote_offsets, sizes, uids))]
        if len(set(counts)) > 1:
            raise ends(
                "would abort", f"BatchWrite: Assertion `batchSize == remoteDest.size()' failed {counts}"
            )
        statuses = [TransferStatus() for _ in sizes]
        rows = zip(local, remote, local_offsets, remote_offsets, sizes, statuses, uids, strict=True)
        for here, there, here_at, there_at, lengths, status, uid in rows:
            if not submit(self._core, here, there, (here_at, there_at, lengths), status, uid):
                break  # the later statuses stay INIT
        return statuses

    def wait_all(self, statuses: Sequence[TransferStatus | None], timeout_ms: int = -1) -> StatusCode:
        return wait_all(statuses, timeout_ms)

    def pop_peer_failure(self) -> PeerFailureEvent | None:
        return self._core.failures.popleft() if self._core.failures else None
