"""Submission of one item: the checks that end it in the call, or its work requests on their lanes."""

from __future__ import annotations

from collections.abc import Sequence

from . import faults
from .core import Core
from .descriptors import MemoryDesc
from .findings import RealLibraryEndsError, ends, report
from .flights import Flight
from .lanes import Request
from .status import TransferStatus
from .values import MemoryLocationType, RdmaBackendConfig, StatusCode

NO_BACKEND = "No available backend found, create backend first"
U64 = 1 << 64
Entry = tuple[int, int, int]
"""Local offset, remote offset, length."""


def merged(local: MemoryDesc, remote: MemoryDesc, entries: list[Entry]) -> list[Request]:
    """Sort by remote offset, and join what is contiguous there."""
    requests: list[Request] = []
    for here, there, length in sorted(entries, key=lambda entry: entry[1]):
        if not requests or requests[-1].offset + requests[-1].length != there:
            requests.append(Request(remote.id, there, []))
        requests[-1].pieces.append((local.data + here, length))
        requests[-1].length += length
        requests[-1].inside &= here + length <= local.size
    return requests


def refusal(
    local: MemoryDesc,
    remote: MemoryDesc,
    entries: list[Entry],
    requests: list[Request],
    config: RdmaBackendConfig,
) -> str | None:
    """Return what makes a transfer terminal in the call, or None; sums wrap at 64 bits as they really do."""
    for _, _, length in entries:
        if length >= 1 << 32:
            return f"single request size {length} exceeds UINT32_MAX; split it before submitting"
    for here, there, length in entries:
        if (here + length) % U64 > local.size or (there + length) % U64 > remote.size:
            return "length out of range"
    for number, request in enumerate(requests):
        if request.length > faults.max_message_bytes and not config.enable_transfer_chunking:
            return (
                f"merged RDMA WR {number} length {request.length} exceeds local max_msg_sz "
                f"{faults.max_message_bytes}; enable RDMA transfer chunking or reduce batch size"
            )
    return "no endpoints" if config.qp_per_transfer < 1 else None


def check_memory(core: Core, local: MemoryDesc, remote: MemoryDesc) -> MemoryDesc:
    """Refuse what ends a process, and return the region that the library takes for the local one."""
    if local.engine_key != core.key:
        report(
            "foreign local descriptor",
            f"engine {core.key} was given memory {local.id} of {local.engine_key!r}",
        )
        if local.id not in core.regions:
            raise RealLibraryEndsError(f"engine {core.key} has no memory {local.id}")
    for side, desc in (("local", local), ("remote", remote)):
        if desc.size == 0:
            raise ends("would abort", f"ibv_reg_mr of size 0 ({side} memory {desc.engine_key}:{desc.id})")
        if desc.loc == MemoryLocationType.GPU:
            raise ends("would exit", f"hip failed with no ROCm-capable device ({side} memory {desc.id})")
    return core.regions.get(local.id, local)


def submit(
    core: Core,
    local: MemoryDesc,
    remote: MemoryDesc,
    offsets: tuple[Sequence[int], Sequence[int], Sequence[int]],
    status: TransferStatus,
    uid: int,
) -> bool:
    """Submit one item; ``offsets`` are local ones, remote ones, and lengths. False: there is no backend."""
    if core.config is None or remote.engine_key not in core.remotes:
        status.Update(StatusCode.ERR_BAD_STATE, NO_BACKEND)
        return False
    if len(set(map(len, offsets))) > 1:
        raise ends(
            "would abort", f"Assertion `localOffsets.size() == remoteOffsets.size()' {[*map(len, offsets)]}"
        )
    entries = list(zip(*offsets, strict=True))
    if not entries:
        status.Update(StatusCode.SUCCESS, "")
        return True
    source = check_memory(core, local, remote)
    lanes = core.session(remote)
    requests = merged(source, remote, entries)
    if reason := refusal(source, remote, entries, requests, core.config):
        status.Update(StatusCode.ERR_INVALID_ARGS, reason)
        return True
    flight = Flight(status, (core.key, source.id), (remote.engine_key, remote.id), len(requests))
    for number, request in enumerate(requests):
        lanes[(uid + number) % len(lanes)].jobs.put((flight, request))
    return True
