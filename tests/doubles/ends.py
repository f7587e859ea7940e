"""Engines of MORI-IO, the double's or the real ones: in this process and in another."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

RETRY, FLUSHED = "transport retry counter exceeded Hint: ", "Work Request Flushed Error"
SIZE = 8192
Outcome = tuple[str, str]
"""The name of a status code, and its message."""

PEER = f"""
import ctypes, sys
from mori.io import *
engine = IOEngine(sys.argv[1], IOEngineConfig("127.0.0.1", 0))
engine.create_backend(BackendType.RDMA, RdmaBackendConfig(2, enable_notification=False))
memory = ctypes.create_string_buffer({SIZE})
desc = engine.register_memory(ctypes.addressof(memory), {SIZE}, -1, MemoryLocationType.CPU)
print(engine.get_engine_desc().pack().hex(), desc.pack().hex(), flush=True)
for line in sys.stdin:
    print(memory.raw[:int(line)].hex(), flush=True)
"""


class End:
    """An engine with ``SIZE`` registered bytes."""

    def __init__(self, mori: ModuleType, qps: int = 2, **config: object) -> None:
        io = mori.io
        self.mori, self.engine = (
            mori,
            io.IOEngine(f"engine-{uuid.uuid4()}", io.IOEngineConfig("127.0.0.1", 0)),
        )
        wanted = io.RdmaBackendConfig(qps, enable_notification=False, **config)
        self.engine.create_backend(io.BackendType.RDMA, wanted)
        self.desc, self.memory = self.more()

    def more(self, size: int = SIZE) -> tuple[Any, Any]:
        memory = ctypes.create_string_buffer(bytes(range(256)) * (size // 256), size)
        cpu = self.mori.io.MemoryLocationType.CPU
        return self.engine.register_memory(ctypes.addressof(memory), size, -1, cpu), memory

    def knows(self, desc: Any) -> None:
        self.engine.register_remote_engine(desc)

    def write(
        self, remote: Any, entries: list[tuple[int, int, int]], uid: int = 0, local: Any = None
    ) -> Outcome:
        """Write (local offset, remote offset, length) entries, and wait for the end."""
        table = [[row[column] for row in entries] for column in range(3)]
        statuses = self.engine.batch_write(
            [local or self.desc], [table[0]], [remote], [table[1]], [table[2]], [uid]
        )
        self.engine.wait_all(statuses, timeout_ms=30_000)
        return statuses[0].Code().name, statuses[0].Message()


def pair(mori: ModuleType) -> tuple[End, End]:
    here, there = End(mori), End(mori)
    here.knows(there.engine.get_engine_desc())
    ctypes.memset(there.memory, 0, SIZE)
    return here, there


@contextmanager
def peer(mori: ModuleType, key: str) -> Iterator[tuple[subprocess.Popen[str], Any, Any]]:
    """Start an engine in another process; yields the process and its two descriptors."""
    assert mori.__file__
    path = os.pathsep.join([str(Path(mori.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", PEER, key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdin
    assert process.stdout
    try:
        engine, memory = (bytes.fromhex(word) for word in process.stdout.readline().split())
        yield process, mori.io.EngineDesc.unpack(engine), mori.io.MemoryDesc.unpack(memory)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def altered(desc: Any, **changes: object) -> Any:
    """Return a descriptor with other fields, by way of its wire form."""
    places = {"key": 0, "engine_key": 0, "id": 1, "host": 3, "port": 4, "size": 5}
    fields = msgspec.msgpack.decode(desc.pack())
    for name, value in changes.items():
        fields[places[name]] = value
    return type(desc).unpack(msgspec.msgpack.encode(fields))
