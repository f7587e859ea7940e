"""Enums, statuses, descriptors and arguments: checks that hold for the double and the real MORI-IO alike."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from types import ModuleType
from typing import Any

import msgspec
import pytest

from doubles.ends import SIZE, End


def check_enums_are_equal_to_their_own_kind_only(mori: ModuleType) -> None:
    code = mori.io.StatusCode
    assert not hasattr(mori.io, "TransferStatus")
    assert code.SUCCESS is code.SUCCESS
    assert code(0) == code.SUCCESS
    assert code.SUCCESS is not code(0)
    assert code.SUCCESS != 0
    assert (int(code.ERR_RDMA_OP), code.INIT.name, code.INIT.value, len({code(1), code.INIT})) == (
        13,
        "INIT",
        1,
        1,
    )
    assert (repr(code.INIT), str(code.INIT), code(3).name) == (
        "<StatusCode.INIT: 1>",
        "StatusCode.INIT",
        "???",
    )
    for wrong in ("a", 1.0, None):
        with pytest.raises(TypeError, match="incompatible constructor arguments"):
            code(wrong)


def statuses(mori: ModuleType, names: str) -> list[Any]:
    made = []
    for name in names.split():
        status = mori.cpp.TransferStatus()
        status.SetCode(getattr(mori.io.StatusCode, name))
        made.append(status)
    return made


def check_a_status_keeps_its_error_but_not_its_success(mori: ModuleType) -> None:
    code, status = mori.io.StatusCode, mori.cpp.TransferStatus()
    assert (status.Code(), status.Message(), status.Init()) == (code.INIT, "", True)
    assert status.WaitFor() == code.INIT
    status.Update(code.SUCCESS, "done")
    assert status.Succeeded()
    status.Update(code.ERR_RDMA_OP, "first")
    status.Update(code.SUCCESS, "second")
    assert (status.Code(), status.Message(), status.Failed()) == (code.ERR_RDMA_OP, "first", True)
    status.SetCode(code.IN_PROGRESS)
    assert status.InProgress()
    assert status.WaitFor(timeout_ms=0) == code.IN_PROGRESS
    with pytest.raises(TypeError, match="incompatible function arguments"):
        status.SetCode(2)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        status.WaitFor(1.5)
    threading.Timer(0.02, lambda: status.Update(code.SUCCESS, "late")).start()
    assert status.WaitFor() == code.SUCCESS


def check_wait_all_looks_in_order_and_returns_the_first_code_but_success(mori: ModuleType) -> None:
    engine, code = End(mori).engine, mori.io.StatusCode
    for timeout_ms, names, expected in [
        (0, "SUCCESS INIT", "INIT"),
        (0, "IN_PROGRESS ERR_RDMA_OP", "ERR_RDMA_OP"),
        (0, "INIT ERR_RDMA_OP", "INIT"),
        (0, "SUCCESS IN_PROGRESS", "IN_PROGRESS"),
        (20, "IN_PROGRESS ERR_RDMA_OP INIT", "IN_PROGRESS"),
        (20, "ERR_BAD_STATE IN_PROGRESS", "ERR_BAD_STATE"),
        (20, "INIT IN_PROGRESS", "INIT"),
        (-1, "SUCCESS ERR_BAD_STATE ERR_RDMA_OP", "ERR_BAD_STATE"),
        (-1, "INIT ERR_RDMA_OP", "INIT"),
    ]:
        waited = statuses(mori, names)
        assert engine.wait_all(waited, timeout_ms) == getattr(code, expected), (timeout_ms, names)
    assert engine.wait_all([]) == engine.wait_all((None,)) == code.SUCCESS
    with pytest.raises(TypeError, match="incompatible function arguments"):
        engine.wait_all([3])


def check_descriptors_are_immutable_and_packed_as_arrays(mori: ModuleType) -> None:
    end, io = End(mori), mori.io
    desc, engine = end.desc, end.engine.get_engine_desc()
    assert [len(msgspec.msgpack.decode(d.pack())) for d in (engine, desc)] == [6, 15]
    assert (desc.id, desc.size, desc.data) == (0, SIZE, ctypes.addressof(end.memory))
    assert (desc.engine_key, desc.loc, desc.numa_node) == (engine.key, io.MemoryLocationType.CPU, 0)
    assert (engine.host, engine.pid, engine.hostname) == ("127.0.0.1", os.getpid(), socket.gethostname())
    for made in (engine, desc):
        kind = type(made)
        assert kind.unpack(made.pack()) == made
        assert made != 1
        with pytest.raises(TypeError, match="unhashable"):
            hash(made)
        for name in ("pid", "id", "other"):
            with pytest.raises(AttributeError):
                setattr(made, name, 1)
        for wrong, error, text in [
            (made.pack()[:5], RuntimeError, "insufficient bytes"),
            (b"", RuntimeError, "insufficient bytes"),
            (b"garbage", RuntimeError, "std::bad_cast"),
            (b"\x91\x01", RuntimeError, "std::bad_cast"),
            (bytearray(made.pack()), TypeError, "incompatible function arguments"),
        ]:
            with pytest.raises(error, match=text):
                kind.unpack(wrong)
    assert io.MemoryDesc().pack() == msgspec.msgpack.encode(
        ["", 0, -1, "", 0, 0, 0, bytes(64), -1, 0, bytes(64), -1, "", 0, 0]
    )
    with pytest.raises(TypeError, match="No constructor defined"):
        io.EngineDesc()


def check_arguments_are_refused_with_type_errors(mori: ModuleType) -> None:
    io, end = mori.io, End(mori)
    cpu, config = io.MemoryLocationType.CPU, io.RdmaBackendConfig()
    assert not hasattr(config, "other")
    for call in (
        lambda: io.IOEngineConfig("127.0.0.1", 70_000),
        lambda: io.IOEngineConfig(host=1),
        lambda: io.RdmaBackendConfig(2.0),
        lambda: io.RdmaBackendConfig(poll_cq_mode=1),
        lambda: setattr(config, "chunk_bytes", -1),
        lambda: io.IOEngine("key", None),
        lambda: end.engine.register_memory(end.desc.data, -1, -1, cpu),
        lambda: end.engine.register_memory(end.desc.data, 1.0, -1, cpu),
        lambda: end.engine.register_memory(end.desc.data, 1, -1, 1),
        lambda: end.engine.register_remote_engine(None),
        lambda: end.engine.deregister_memory(None),
        lambda: end.write(end.desc, [(0.0, 0, 1)]),  # type: ignore[list-item]  # refused
        lambda: end.write(end.desc, [(-1, 0, 1)]),
        lambda: end.write(end.desc, [(1 << 64, 0, 1)]),
        lambda: end.write(end.desc, [], uid=-1),
        lambda: io.set_log_level(3),
    ):
        with pytest.raises(TypeError, match=r"incompatible (function|constructor) arguments"):
            call()
    for call in (
        lambda: end.engine.register_memory(1.5, 1, -1, cpu),
        lambda: end.engine.batch_write(local=[end.desc]),
        lambda: end.engine.batch_write([end.desc], [[0]]),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="null pointer"):
        end.engine.register_memory(0, 1, -1, cpu)
    with pytest.raises(AttributeError):
        config.other = 1


def check_bad_configurations_are_refused_when_the_backend_is_made(mori: ModuleType) -> None:
    io = mori.io
    engine = io.IOEngine("key", io.IOEngineConfig("127.0.0.1", 0))
    for config, text in [
        ({"notif_per_qp": 0}, "notifPerQp must be >= 1"),
        ({"num_nics_per_transfer": 0}, "numNicsPerTransfer must be >= 1"),
        ({"max_chunks_per_transfer": 0}, "maxChunksPerTransfer must be >= 1"),
        ({"enable_transfer_chunking": True, "chunk_bytes": 4095}, "chunkBytes must be >= 4096"),
    ]:
        with pytest.raises(RuntimeError, match=f"Invalid RDMA config: {text}"):
            engine.create_backend(io.BackendType.RDMA, io.RdmaBackendConfig(**config))
    for kind in (io.BackendType.TCP, io.BackendType(2), 2):
        with pytest.raises(NotImplementedError, match="backend not implemented yet"):
            engine.create_backend(kind)


CHECKS = [check for name, check in globals().items() if name.startswith("check_")]
