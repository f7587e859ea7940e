"""The adapter on the real Mooncake engine of this process, which writes to itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from pd_mooncake.engine import MooncakeEngine, MooncakePeer

from pdcore import Deadline, EngineError, FailureCode, Region, Role, select
from pdcore.contract.engine import TransferEngine
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import RegistrationError
from pdcore.model import new_incarnation

BLOCK = 256
BLOCKS = 4096

Memory = npt.NDArray[np.uint8]


def start(**options: object) -> TransferEngine:
    return select("mooncake_tcp", {"transfer_timeout": 5.0, **options}).start_engine(
        role=Role.PREFILL, incarnation=new_incarnation(), host="127.0.0.1", deadline=Deadline.after(30)
    )


@contextmanager
def registered() -> Iterator[tuple[MooncakeEngine, Memory, Memory, bytes]]:
    """An engine with a source and a target of 1 MiB, and its export."""
    source = np.random.default_rng(3).integers(0, 256, (BLOCKS, BLOCK), np.uint8)
    target = np.zeros_like(source)
    engine = start()
    assert isinstance(engine, MooncakeEngine)
    try:
        yield engine, source, target, engine.register([Region.of("a", source), Region.of("b", target)])
    finally:
        engine.close()


def scattered(order: npt.NDArray[np.int64]) -> WriteBatch:
    """Block ``i`` of the source to block ``order[i]`` of the target."""
    here = np.arange(len(order), dtype=np.uint64) * np.uint64(BLOCK)
    there = order.astype(np.uint64) * np.uint64(BLOCK)
    return WriteBatch.of(0, 1, here, there, np.full(len(order), BLOCK, np.uint64))


def test_adapters_of_equal_settings_share_the_engine_of_the_process() -> None:
    with registered() as (engine, source, target, _):
        other = start()
        try:
            assert other.endpoint() != engine.endpoint()
            other.register([Region.of("again", source), Region.of("and again", target)])
            with pytest.raises(EngineError) as caught:
                start(transfer_timeout=9.0)
            assert caught.value.happened == "this process already runs a Mooncake engine with other settings"
            assert "transfer_timeout=5.0" in caught.value.there_is
            assert "transfer_timeout=9.0" in caught.value.there_is
        finally:
            other.close()
        # The memory is still registered for who shares it.
        peer = engine.connect(engine.endpoint(), *exported(engine))
        assert engine.write(peer, scattered(np.arange(9))).poll() is TransferState.DONE


def exported(engine: TransferEngine) -> tuple[bytes, Deadline]:
    """Return what ``register`` returned, made anew."""
    regions = engine.regions
    engine.deregister()
    return engine.register(regions), Deadline.after(10)


def test_overlapping_memory_is_refused_by_name_and_nothing_stays_registered() -> None:
    memory = np.zeros(4096, np.uint8)
    engine = start()
    try:
        with pytest.raises(RegistrationError) as caught:
            engine.register([Region.of("whole", memory), Region.of("part", memory[1024:2048])])
        assert caught.value.happened == "the engine does not register region 'part'"
        assert "code -7, it overlaps memory that is registered already" in caught.value.there_is
        engine.register([Region.of("part", memory[1024:2048])])
    finally:
        engine.close()


def test_many_threads_together_keep_the_engines_queue_from_overflowing() -> None:
    with registered() as (engine, source, target, export):
        peer = engine.connect(engine.endpoint(), export, Deadline.after(10))
        order = np.random.default_rng(5).permutation(BLOCKS)
        transfers: list[Transfer] = []

        def write() -> None:
            transfers.extend(engine.write(peer, scattered(order)) for _ in range(3))

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [str(one.error) for one in transfers if one.poll() is not TransferState.DONE] == []
        assert len(transfers) == 12
        assert np.array_equal(target[order], source)
        one = engine.write(peer, scattered(np.arange(1)))
        assert one.poll() is TransferState.DONE


def test_another_engine_under_a_known_name_is_met_with_a_new_engine() -> None:
    with registered() as (engine, source, target, export):
        engine.connect(engine.endpoint(), export, Deadline.after(10))
        native = engine._native
        before = native.current
        # The engine caches a peer's data port by its name: this is how a restart on the same port looks.
        known = msgspec.msgpack.decode(engine.endpoint())
        restarted = msgspec.msgpack.encode({**known, "incarnation": "another life"})
        peer = engine.connect(restarted, export, Deadline.after(10))
        assert native.current is not before
        order = np.arange(BLOCKS)[::-1]
        assert engine.write(peer, scattered(order)).poll() is TransferState.DONE
        assert np.array_equal(target[order], source)


def test_a_peer_whose_engine_has_ended_is_lost_and_its_bytes_land_nowhere() -> None:
    with registered() as (engine, _source, _target, export):
        peer = engine.connect(engine.endpoint(), export, Deadline.after(10))
        assert isinstance(peer, MooncakePeer)
        peer.segment = "127.0.0.1:9"
        gone = engine.write(peer, scattered(np.arange(3)))
        assert gone.poll() is TransferState.FAILED
        assert gone.error is not None
        assert gone.error.code is FailureCode.PEER_LOST
        assert gone.error.there_is == "its control port is closed: the engine has ended"
        assert gone.quiescence is Quiescence.DRAINED


def test_an_endpoint_of_another_backend_is_refused() -> None:
    with registered() as (engine, _source, _target, export):
        with pytest.raises(EngineError, match="this is not the endpoint of a Mooncake engine"):
            engine.connect(b"local:1", export, Deadline.after(5))
        nowhere = msgspec.msgpack.encode({"segment": "127.0.0.1:9", "incarnation": "x"})
        with pytest.raises(EngineError, match="the engine has ended"):
            engine.connect(nowhere, export, Deadline.after(5))


def test_a_wedged_engine_is_recognised_and_replaced() -> None:
    with registered() as (engine, source, target, export):
        peer = engine.connect(engine.endpoint(), export, Deadline.after(10))
        assert isinstance(peer, MooncakePeer)
        wedged = engine._native.current
        # What the adapter never does: more blocks at once than the engine's queue takes.
        offsets = np.tile(np.arange(BLOCKS, dtype=np.uint64) * np.uint64(BLOCK), 6)
        here, there = offsets + np.uint64(source.ctypes.data), offsets + np.uint64(target.ctypes.data)
        lengths = np.full(len(offsets), BLOCK, np.uint64)
        reasons: list[str] = []
        while engine._native.current is wedged and len(reasons) < 40:
            assert wedged.batch_transfer_sync_write(peer.segment, here, there, lengths) == -1
            failed = engine.write(peer, scattered(np.arange(3)))
            reasons.append(failed.error.there_is if failed.error else "it worked")
        assert reasons[-1] == "its transfers to this peer are wedged; it was replaced"
        order = np.random.default_rng(7).permutation(BLOCKS)
        assert engine.write(peer, scattered(order)).poll() is TransferState.DONE
        assert np.array_equal(target[order], source)


def test_many_lives_under_one_name_leave_one_engine_that_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    with registered() as (engine, source, target, export):
        native, known = engine._native, msgspec.msgpack.decode(engine.endpoint())
        monkeypatch.setattr("pd_mooncake.native.MAX_REPLACED", 1)
        lives = [msgspec.msgpack.encode({**known, "incarnation": f"life {n}"}) for n in range(3)]
        for life in lives:
            engine.disconnect(engine.connect(life, export, Deadline.after(10)))
        assert len(native._engines) == 2, "one that was named, and one that sends"
        peer = engine.connect(lives[-1], export, Deadline.after(10))
        order = np.arange(BLOCKS)[::-1]
        assert engine.write(peer, scattered(order)).poll() is TransferState.DONE
        assert np.array_equal(target[order], source)
        assert engine.endpoint() == msgspec.msgpack.encode(known)
