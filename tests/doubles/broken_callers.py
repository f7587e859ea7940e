"""Callers of MORI-IO that break one of its rules each, and the finding that the double makes of it."""

from __future__ import annotations

import ctypes
import gc
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from doubles.detectors import MoriDouble
from doubles.ends import SIZE, End, pair

if TYPE_CHECKING:
    from doubles.mori.findings import Kind


def drop_a_status(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    with double.faults.held():
        here.engine.batch_write([here.desc], [[0]], [there.desc], [[0]], [[1]], [0])
        gc.collect()


def raise_after_the_first_item(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    target = [there.desc, there.more(256)[0]]
    there.engine.deregister_memory(target[1])
    with double.faults.held():
        with pytest.raises(RuntimeError, match="remote MR size mismatch"):
            here.engine.batch_write([here.desc] * 2, [[0]] * 2, target, [[0]] * 2, [[1]] * 2, [0, 1])
        gc.collect()


def drop_an_engine(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    with double.faults.held():
        status = here.engine.batch_write([here.desc], [[0]], [there.desc], [[0]], [[1]], [0])
        del here.engine
        gc.collect()
    assert status[0].InProgress()


def end_in_progress(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    double.faults.open_gate.clear()
    LEFT.append((here, there, here.engine.batch_write([here.desc], [[0]], [there.desc], [[0]], [[1]], [0])))


LEFT: list[object] = []
"""What a broken caller keeps beyond its test."""


def unequal_inner_lengths(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    with pytest.raises(RuntimeError, match="Assertion `localOffsets"):
        here.engine.batch_write([here.desc], [[0, 1]], [there.desc], [[0]], [[1]], [0])


def unequal_outer_lengths(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    with pytest.raises(RuntimeError, match="Assertion `batchSize"):
        here.engine.batch_write([here.desc], [[0]], [there.desc], [[0]], [[1]], [])


def empty_local_region(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    cpu = double.mori.io.MemoryLocationType.CPU
    empty = here.engine.register_memory(ctypes.addressof(there.memory), 0, -1, cpu)
    with pytest.raises(RuntimeError, match=r"ibv_reg_mr of size 0 \(local"):
        here.write(there.desc, [(0, 0, 0)], local=empty)


def empty_remote_region(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    cpu = double.mori.io.MemoryLocationType.CPU
    empty = there.engine.register_memory(ctypes.addressof(here.memory), 0, -1, cpu)
    with pytest.raises(RuntimeError, match=r"ibv_reg_mr of size 0 \(remote"):
        here.write(empty, [(0, 0, 0)])


def a_backend_without_implementation(double: MoriDouble) -> None:
    io = double.mori.io
    engine = io.IOEngine("engine", io.IOEngineConfig("127.0.0.1", 0))
    with pytest.raises(RuntimeError, match="not implemented"):
        engine.create_backend(io.BackendType.TCP, io.RdmaBackendConfig())


def a_port_in_use(double: MoriDouble) -> None:
    io = double.mori.io
    with socket.create_server(("127.0.0.1", 0)) as taken:
        engine = io.IOEngine("engine", io.IOEngineConfig("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(RuntimeError, match="Address already in use"):
            engine.create_backend(io.BackendType.RDMA)


def a_host_name(double: MoriDouble) -> None:
    io = double.mori.io
    io.IOEngine("engine", io.IOEngineConfig("localhost", 0)).create_backend(io.BackendType.RDMA)


def memory_of_an_absent_gpu(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    gpu = double.mori.io.MemoryLocationType.GPU
    desc = here.engine.register_memory(ctypes.addressof(there.memory), SIZE, 0, gpu)
    with pytest.raises(RuntimeError, match="no ROCm-capable device"):
        here.write(there.desc, [(0, 0, 1)], local=desc)


def a_foreign_local_descriptor(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    assert here.write(there.desc, [(0, 0, 1)], local=there.desc) == ("SUCCESS", "success")


def deregister_in_flight(double: MoriDouble) -> None:
    here, there = pair(double.mori)
    with double.faults.held():
        statuses = here.engine.batch_write([here.desc], [[0]], [there.desc], [[0]], [[1]], [0])
        there.engine.deregister_memory(there.desc)
    statuses[0].Wait()


def register_twice(double: MoriDouble) -> None:
    end = End(double.mori)
    end.engine.register_memory(end.desc.data, 1, -1, double.mori.io.MemoryLocationType.CPU)


BROKEN: list[tuple[Callable[[MoriDouble], None], Kind]] = [
    (drop_a_status, "status dropped"),
    (raise_after_the_first_item, "status dropped"),
    (drop_an_engine, "engine dropped"),
    (end_in_progress, "in progress at teardown"),
    (unequal_inner_lengths, "would abort"),
    (unequal_outer_lengths, "would abort"),
    (empty_local_region, "would abort"),
    (empty_remote_region, "would abort"),
    (a_backend_without_implementation, "would abort"),
    (a_port_in_use, "would exit"),
    (a_host_name, "would exit"),
    (memory_of_an_absent_gpu, "would exit"),
    (a_foreign_local_descriptor, "foreign local descriptor"),
    (deregister_in_flight, "deregistered in flight"),
    (register_twice, "same base twice"),
]
