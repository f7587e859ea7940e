"""Transfers and their ends: checks that hold for the double and the real MORI-IO alike."""

from __future__ import annotations

import ctypes
import socket
import uuid
from types import ModuleType

import pytest

from doubles.ends import FLUSHED, RETRY, SIZE, End, altered, pair, peer


def check_the_port_is_in_descriptors_made_after_the_backend(mori: ModuleType) -> None:
    io = mori.io
    engine = io.IOEngine(f"engine-{uuid.uuid4()}", io.IOEngineConfig("127.0.0.1"))
    early = engine.get_engine_desc()
    engine.create_backend(io.BackendType.RDMA)
    late = engine.get_engine_desc()
    assert early.port == 0 < late.port
    engine.create_backend(io.BackendType.RDMA)
    assert engine.get_engine_desc() == late
    assert [engine.allocate_transfer_uid() for _ in range(3)] == [0, 1, 2]


def check_bytes_move_and_the_status_ends_later(mori: ModuleType) -> None:
    here, there = pair(mori)
    (status,) = here.engine.batch_write([here.desc], [(1, 0)], [there.desc], [range(0, 8, 4)], [[3, 1]], [7])
    assert status.Code() != mori.io.StatusCode.INIT
    assert status.WaitFor(30_000) == mori.io.StatusCode.SUCCESS
    assert status.Message() == "success"
    assert there.memory.raw[:8] == b"\1\2\3\0\0\0\0\0"
    assert here.write(there.desc, []) == ("SUCCESS", "")
    assert here.write(there.desc, [(0, 0, 0)]) == ("SUCCESS", "success")
    assert here.engine.batch_write([], [], [], [], [], []) == []


def check_bytes_reach_another_process(mori: ModuleType) -> None:
    here = End(mori)
    with peer(mori, f"peer-{uuid.uuid4()}") as (process, engine, memory):
        here.knows(engine)
        assert here.write(memory, [(16, 8, 8), (0, 0, 8)]) == ("SUCCESS", "success")
        assert process.stdin
        assert process.stdout
        process.stdin.write("16\n")
        process.stdin.flush()
        expected = here.memory.raw[:8] + here.memory.raw[16:24]
        assert bytes.fromhex(process.stdout.readline()) == expected


def check_wrong_entries_end_in_the_call_and_write_nothing(mori: ModuleType) -> None:
    here, there = pair(mori)
    for entries, text in [
        ([(SIZE, 0, 1)], "length out of range"),
        ([(0, 0, 5), (0, SIZE - 4, 5)], "length out of range"),
        ([(SIZE + 1, 0, 0)], "length out of range"),
        ([(0, 0, 1 << 32)], f"single request size {1 << 32} exceeds UINT32_MAX; split it before submitting"),
    ]:
        assert here.write(there.desc, entries) == ("ERR_INVALID_ARGS", text)
    assert there.memory.raw == bytes(SIZE)
    here_without = End(mori, qps=0)
    here_without.knows(there.engine.get_engine_desc())
    assert here_without.write(there.desc, [(0, 0, 1)]) == ("ERR_INVALID_ARGS", "no endpoints")


def check_an_unknown_engine_is_a_bad_state_and_later_items_stay_init(mori: ModuleType) -> None:
    here, there, text = End(mori), End(mori), "No available backend found, create backend first"
    made = here.engine.batch_write([here.desc] * 2, [[0]] * 2, [there.desc] * 2, [[0]] * 2, [[1]] * 2, [0, 1])
    assert [(s.Code().name, s.Message()) for s in made] == [("ERR_BAD_STATE", text), ("INIT", "")]
    here.knows(there.engine.get_engine_desc())
    assert here.write(there.desc, [(0, 0, 1)])[0] == "SUCCESS"
    here.engine.deregister_remote_engine(there.engine.get_engine_desc())
    assert here.write(there.desc, [(0, 0, 1)]) == ("ERR_BAD_STATE", text)


def check_memory_registered_before_the_backend_is_invisible(mori: ModuleType) -> None:
    io, here = mori.io, End(mori)
    engine = io.IOEngine(f"engine-{uuid.uuid4()}", io.IOEngineConfig("127.0.0.1", 0))
    memory = ctypes.create_string_buffer(SIZE)
    early = engine.register_memory(ctypes.addressof(memory), SIZE, -1, io.MemoryLocationType.CPU)
    engine.create_backend(io.BackendType.RDMA, io.RdmaBackendConfig(enable_notification=False))
    here.knows(engine.get_engine_desc())
    key = engine.get_engine_desc().key
    with pytest.raises(RuntimeError) as raised:
        here.write(early, [(0, 0, 1)])
    assert str(raised.value) == (
        "RdmaBackend::CreateSession: remote MR size mismatch for engine "
        f"{key} rdevId=0 memId=0 expected={SIZE} got=0"
    )


def check_deregistered_memory_kills_its_queue_pair_for_good(mori: ModuleType) -> None:
    here, there = pair(mori)
    other, _memory = there.more()
    assert here.write(there.desc, [(0, 0, 1)])[0] == "SUCCESS"
    there.engine.deregister_memory(there.desc)
    code, text = here.write(there.desc, [(0, 0, 1)], uid=0)
    assert (code, text[:26]) == ("ERR_RDMA_OP", "remote access error Hint: ")
    assert here.write(other, [(0, 0, 1)], uid=2) == ("ERR_RDMA_OP", FLUSHED)
    assert here.write(other, [(0, 0, 1)], uid=1) == ("SUCCESS", "success")
    assert here.write(other, [(0, 0, 9), (90, 9, 9)], uid=1) == ("SUCCESS", "success")
    assert here.write(other, [(0, 0, 9), (90, 90, 9)], uid=1) == ("ERR_RDMA_OP", FLUSHED)


def check_sums_beyond_64_bits_pass_the_check_and_fail_on_the_wire(mori: ModuleType) -> None:
    here, there = pair(mori)
    code, text = here.write(there.desc, [((1 << 64) - 1, 0, 2)])
    assert (code, text[:30]) == ("ERR_RDMA_OP", "local protection error Hint: l")


def check_a_dead_peer_is_gone_for_its_key_even_when_restarted(mori: ModuleType) -> None:
    here, key = End(mori), f"peer-{uuid.uuid4()}"
    with peer(mori, key) as (_, engine, memory):
        here.knows(engine)
        assert here.write(memory, [(0, 0, 1)])[0] == "SUCCESS"
    for uid in (0, 1):
        code, text = here.write(memory, [(0, 0, 1)], uid)
        assert (code, text[: len(RETRY)]) == ("ERR_RDMA_OP", RETRY)
    failure = here.engine.pop_peer_failure()
    assert failure.reason == mori.io.PeerFailureReason.PEER_UNREACHABLE
    assert failure.remote_engine_key == key
    assert here.engine.pop_peer_failure() is not None
    assert here.engine.pop_peer_failure() is None
    with peer(mori, key) as (_, engine, memory):
        here.knows(engine)
        for uid in (0, 1):
            assert here.write(memory, [(0, 0, 1)], uid) == ("ERR_RDMA_OP", FLUSHED)
    with peer(mori, f"{key}-new") as (_, engine, memory):
        here.knows(engine)
        assert here.write(memory, [(0, 0, 1)]) == ("SUCCESS", "success")


def check_an_unreachable_control_plane_raises(mori: ModuleType) -> None:
    here, there = pair(mori)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        known = there.engine.get_engine_desc()
        for name, changes, text in [
            ("named", {"host": "localhost"}, f"connect(localhost:{known.port}): Network is unreachable"),
            ("none", {"port": nobody}, f"connect(127.0.0.1:{nobody}): Connection refused"),
            (
                "silent",
                {"port": port},
                "ReadMessageHeader(type) failed: expected 1 byte(s), received 0, "
                "errno=11 (Resource temporarily unavailable)",
            ),
        ]:
            here.knows(altered(known, key=name, **changes))
            memory = altered(there.desc, engine_key=name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MORI_IO_CP_TIMEOUT_MS", "300")  # the real library reads it once per process
                with pytest.raises(RuntimeError) as raised:
                    here.write(memory, [(0, 0, 1)])
            assert str(raised.value) == text
    assert here.write(there.desc, [(0, 0, 1)])[0] == "SUCCESS"


CHECKS = [check for name, check in globals().items() if name.startswith("check_")]
