"""Two engines of the real library, in two processes: this one, and a far one that is only a target."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

import attrs
import numpy as np
import numpy.typing as npt
from mori.cpp import TransferStatus
from mori.io import (
    BackendType,
    EngineDesc,
    IOEngine,
    IOEngineConfig,
    MemoryDesc,
    MemoryLocationType,
    RdmaBackendConfig,
    StatusCode,
)

SIZE = 1 << 20
"""Bytes of every memory here."""


def start_engine(name: str, **config: int | bool) -> IOEngine:
    """Return an engine with one queue pair to each peer."""
    engine = IOEngine(f"{name}-{uuid4()}", IOEngineConfig("127.0.0.1", 0))
    settings = {"qp_per_transfer": 1, "num_worker_threads": 1, "enable_notification": False, **config}
    engine.create_backend(BackendType.RDMA, RdmaBackendConfig(**settings))
    return engine


def random_bytes(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)


@attrs.define
class Far:
    """The far process, as this one knows it."""

    process: subprocess.Popen[str]
    engine: EngineDesc
    memory: MemoryDesc

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def content(self) -> npt.NDArray[np.uint8]:
        """Return what is in its memory now."""
        return np.frombuffer(bytes.fromhex(self.ask("content")), np.uint8)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def far_end(environ: Mapping[str, str] | None = None) -> Iterator[Far]:
    """Start the far process. Its memory is zero."""
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    ) as process:
        assert process.stdout is not None
        engine, memory = process.stdout.readline().split()
        try:
            yield Far(
                process, EngineDesc.unpack(bytes.fromhex(engine)), MemoryDesc.unpack(bytes.fromhex(memory))
            )
        finally:
            process.kill()


@attrs.define
class Near:
    """This process's engine and memory. A status is held until it is terminal: MORI points to it."""

    engine: IOEngine
    content: npt.NDArray[np.uint8]
    memory: MemoryDesc

    @staticmethod
    def start(content: npt.NDArray[np.uint8], **config: int | bool) -> Near:
        engine = start_engine("near", **config)
        memory = engine.register_memory(content.ctypes.data, content.nbytes, -1, MemoryLocationType.CPU)
        return Near(engine, content, memory)

    def write(self, far: Far, local: list[int], remote: list[int], sizes: list[int]) -> TransferStatus:
        """Submit one transfer of many entries."""
        self.engine.register_remote_engine(far.engine)
        uid = self.engine.allocate_transfer_uid()
        return self.engine.batch_write([self.memory], [local], [far.memory], [remote], [sizes], [uid])[0]

    def read(self, far: Far, local: list[int], remote: list[int], sizes: list[int]) -> TransferStatus:
        """Submit one transfer of many entries."""
        self.engine.register_remote_engine(far.engine)
        uid = self.engine.allocate_transfer_uid()
        return self.engine.batch_read([self.memory], [local], [far.memory], [remote], [sizes], [uid])[0]

    def finish(self, status: TransferStatus) -> tuple[StatusCode, str]:
        """Wait until a transfer is over. Returns its code and message."""
        self.engine.wait_all([status], timeout_ms=30_000)
        return status.Code(), status.Message()


def serve() -> None:
    """Be the far process: say how to reach the memory, then answer until nobody asks."""
    engine = start_engine("far")
    memory = ctypes.create_string_buffer(SIZE)
    desc = engine.register_memory(ctypes.addressof(memory), SIZE, -1, MemoryLocationType.CPU)
    print(engine.get_engine_desc().pack().hex(), desc.pack().hex(), flush=True)
    for command in sys.stdin:
        if command.strip() == "content":
            print(memory.raw.hex(), flush=True)
        elif command.strip() == "deregister":
            engine.deregister_memory(desc)
            print("done", flush=True)


if __name__ == "__main__":
    serve()
