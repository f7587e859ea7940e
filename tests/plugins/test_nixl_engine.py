"""The adapter on two real NIXL agents of this process: what is written by number, and what entry by entry."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from pd_nixl import lists
from pd_nixl.engine import NixlEngine, NixlPeer

from pdcore import Deadline, EngineError, FailureCode, Region, Role, select
from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Quiescence, TransferState
from pdcore.contract.regions import RegionInfo, WriteBatch
from pdcore.errors import EngineClosedError
from pdcore.model import CPU, Device, DeviceKind, new_incarnation
from pdcore.plan import ItemCopier, PieceCopier, Pieces, join
from pdcore.testing.far import commands
from pdcore.testing.far.process import FarProcess
from pdcore.testing.memory import digest
from pdcore.testing.target import Target

ITEMS = {"kv.0": 96, "kv.1": 96, "aux": 64}
"""Item lengths (bytes) of the regions, of which each has COUNT."""
COUNT = 128

Memory = dict[str, npt.NDArray[np.uint8]]


def soon() -> Deadline:
    return Deadline.after(30)


def start(role: Role = Role.PREFILL) -> NixlEngine:
    engine = select("nixl").start_engine(
        role=role, incarnation=new_incarnation(), host="127.0.0.1", deadline=soon()
    )
    assert isinstance(engine, NixlEngine)
    return engine


def regions_of(memory: Memory) -> list[Region]:
    return [attrs.evolve(Region.of(name, memory[name]), item_len=item) for name, item in ITEMS.items()]


@contextmanager
def pair() -> Iterator[tuple[NixlEngine, Peer, Memory, Memory]]:
    """A prefill engine connected to a decode engine, and the memory of both."""
    random = np.random.default_rng(5)
    source = {name: random.integers(0, 256, (COUNT, item), np.uint8) for name, item in ITEMS.items()}
    target = {name: np.zeros_like(array) for name, array in source.items()}
    prefill, decode = start(), start(Role.DECODE)
    try:
        prefill.register(regions_of(source))
        yield (
            prefill,
            prefill.connect(decode.endpoint(), decode.register(regions_of(target)), soon()),
            source,
            target,
        )
    finally:
        prefill.close()
        decode.close()


def items(region: int, here: npt.ArrayLike, there: npt.ArrayLike) -> WriteBatch:
    """Whole items of one region, merged as the core merges them."""
    copier = ItemCopier("item", [list(ITEMS.values())[region]], [region], [region], COUNT, COUNT)
    return copier(np.asarray(here, np.int64), np.asarray(there, np.int64))


def calls_of(engine: NixlEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record by which of NIXL's ways the real agent makes requests from now on."""
    calls: list[str] = []

    def record(name: str) -> None:
        call = getattr(engine.agent, name)

        def recorded(*given: object) -> object:
            calls.append(name)
            return call(*given)

        monkeypatch.setattr(engine.agent, name, recorded)

    record("make_prepped_xfer")
    record("initialize_xfer")
    return calls


def test_whole_items_are_written_by_number_and_parts_by_description(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(9)
    here, there = (random.permutation(COUNT)[:50] for _ in range(2))
    with pair() as (engine, peer, source, target):
        calls = calls_of(engine, monkeypatch)
        whole = join([items(0, here, there), items(1, range(40), range(7, 47)), items(2, [3], [9])])
        part = WriteBatch.of(1, 1, [96 * 50 + 5], [96 * 80 + 11], [300])
        for batch, way in ((whole, "make_prepped_xfer"), (part, "initialize_xfer")):
            assert engine.write(peer, batch).wait(soon()) is TransferState.DONE
            assert calls.pop() == way
            assert not calls
    expected = {name: np.zeros_like(array) for name, array in source.items()}
    expected["kv.0"][there] = source["kv.0"][here]
    expected["kv.1"][7:47] = source["kv.1"][:40]
    expected["aux"][9] = source["aux"][3]
    expected["kv.1"].reshape(-1)[96 * 80 + 11 :][:300] = source["kv.1"].reshape(-1)[96 * 50 + 5 :][:300]
    for name, array in expected.items():
        assert np.array_equal(target[name], array), name


def test_items_with_gaps_are_written_by_number_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side here, with padding there: as long, but other strides."""
    random = np.random.default_rng(4)
    source = random.integers(0, 256, (COUNT, 2, 96), np.uint8)
    target = np.zeros((COUNT, 100), np.uint8)
    here, there = (random.permutation(COUNT)[:50] for _ in range(2))
    plan = PieceCopier("item", [Pieces.whole(96, 192, 100)], [1], [0], COUNT, COUNT)(
        here.astype(np.int64), there.astype(np.int64)
    )
    prefill, decode = start(), start(Role.DECODE)
    try:
        prefill.register([Region.of("k", source[:, 0]), Region.of("v", source[:, 1])])
        export = decode.register([Region.of("v", target[:, :96])])
        peer = prefill.connect(decode.endpoint(), export, soon())
        calls = calls_of(prefill, monkeypatch)
        assert prefill.write(peer, plan).wait(soon()) is TransferState.DONE
        assert calls == ["make_prepped_xfer"]
        # A run across gaps is no whole items, whatever its length.
        run = WriteBatch.of(1, 0, [0], [0], [192])
        assert prefill.write(peer, run).wait(soon()) is TransferState.DONE
        assert calls == ["make_prepped_xfer", "initialize_xfer"]
    finally:
        prefill.close()
        decode.close()
    expected = np.zeros_like(target)
    expected[there, :96] = source[here, 1]
    expected.reshape(-1)[:192] = source.reshape(-1)[96 : 96 + 192]
    assert np.array_equal(target, expected)


def test_items_of_unequal_lengths_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair() as (engine, peer, source, target):
        calls = calls_of(engine, monkeypatch)
        assert engine.write(peer, WriteBatch.of(2, 0, [64], [0], [192])).wait(soon()) is TransferState.DONE
        assert calls == ["initialize_xfer"]
        assert np.array_equal(target["kv.0"].reshape(-1)[:192], source["aux"].reshape(-1)[64:256])


def test_every_item_has_its_number_in_the_list_of_its_kind_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(DeviceKind.CUDA)
    infos = [
        RegionInfo("a", 40, CPU, 10),
        RegionInfo("b", 90, device, 30),
        RegionInfo("c", 8, CPU),
        RegionInfo("d", 60, device, 20),
    ]
    with pair() as (engine, *_):
        made: list[tuple[str, list[list[int]], str]] = []

        def record(name: str, rows: npt.NDArray[np.uint64], kind: str) -> object:
            made.append((name, rows.tolist(), kind))
            return object()

        monkeypatch.setattr(engine.agent, "prep_xfer_dlist", record)
        side = lists.Side(engine.agent, "peer", [1000, 2000, 3000, 4000], infos)
    assert made == [
        ("peer", [[1000, 10, 0, 10, 4], [3000, 8, 0, 8, 1]], "DRAM"),
        ("peer", [[2000, 30, 0, 30, 3], [4000, 20, 0, 20, 3]], "VRAM"),
    ]
    regions = np.array([0, 2, 1, 3])
    numbers = side.numbers(regions, np.array([20, 0, 0, 40]), np.array([2, 1, 3, 1]))
    assert numbers.tolist() == [2, 3, 4, 0, 1, 2, 5]
    assert numbers.dtype == np.int32


@pytest.mark.parametrize("items_of_it", [2**31, 2**40])
def test_a_list_too_long_for_its_numbers_is_not_made(items_of_it: int) -> None:
    with pair() as (engine, *_):
        side = lists.Side(engine.agent, "", [0], [RegionInfo("huge", items_of_it, CPU, 1)])
    assert side.lists == {}


def test_metadata_that_does_not_fit_its_regions_is_refused() -> None:
    with pair() as (engine, peer, _, target):
        other = start(Role.DECODE)
        try:
            export = msgspec.msgpack.decode(other.register(regions_of(target))[4:])
            native = msgspec.msgpack.decode(export["native"])
            for addresses, told in (([1], "1 addresses of agent"), ([-1, 2, 3], "OverflowError")):
                export["native"] = msgspec.msgpack.encode({**native, "addresses": addresses})
                body = msgspec.msgpack.encode(export)
                with pytest.raises(EngineError, match="does not accept a peer's metadata") as caught:
                    engine.connect(other.endpoint(), zlib.crc32(body).to_bytes(4, "big") + body, soon())
                assert told in caught.value.there_is
            assert engine.write(peer, items(0, [1], [2])).wait(soon()) is TransferState.DONE
        finally:
            other.close()


def test_a_peer_that_was_forgotten_is_written_to_no_more() -> None:
    with pair() as (engine, peer, _, target):
        engine.disconnect(peer)
        transfer = engine.write(peer, items(0, [1], [2]))
        assert transfer.wait(soon()) is TransferState.FAILED
        assert transfer.error is not None
        assert transfer.error.code is FailureCode.ENGINE
        assert "nixlNotFoundError" in transfer.error.there_is
        assert not target["kv.0"].any()


def test_a_peer_that_is_forgotten_in_the_middle_of_a_write_is_drained_only_when_it_has_landed() -> None:
    length = 256 << 20
    source = np.random.default_rng(3).integers(0, 256, length, np.uint8)
    target = Target("nixl_tcp")
    near, far = target.start_engine(Role.PREFILL), FarProcess()
    try:
        there = far.ask(commands.StartEngine("nixl_tcp", {}, "decode", [length], 1))
        near.register([Region.of("near", source)])
        peer = near.connect(there.endpoint, there.export, soon())
        assert near.write(peer, WriteBatch.of(0, 0, [0], [0], [4096])).wait(soon()) is TransferState.DONE
        far.pause()
        transfer = near.write(peer, WriteBatch.of(0, 0, [0], [0], [length]))
        near.disconnect(peer)
        near.disconnect(peer)
        assert transfer.wait(Deadline.after(0.3)) is TransferState.PENDING
        seen = [transfer.quiescence]
        far.resume()
        assert transfer.wait(soon()) is TransferState.DONE, transfer.error
        assert [*seen, transfer.quiescence] == [Quiescence.IN_FLIGHT, Quiescence.DRAINED]
        assert far.ask(commands.MemoryDigests()) == [digest(source)]
        again = near.connect(there.endpoint, there.export, soon())
        assert near.write(again, WriteBatch.of(0, 0, [0], [0], [4096])).wait(soon()) is TransferState.DONE
    finally:
        far.kill()
        near.close()


def test_forgetting_one_of_two_connections_leaves_the_other() -> None:
    with pair() as (engine, _, source, target):
        decode = start(Role.DECODE)
        try:
            export = decode.register([attrs.evolve(Region.of("kv.0", target["kv.0"]), item_len=96)])
            first, second = (engine.connect(decode.endpoint(), export, soon()) for _ in range(2))
            for _ in range(2):
                engine.disconnect(first)
            assert engine.write(second, items(0, [1], [2])).wait(soon()) is TransferState.DONE
            assert np.array_equal(target["kv.0"][2], source["kv.0"][1])
        finally:
            engine.disconnect(second)
            decode.close()


def test_connecting_beside_close_ends_in_its_error() -> None:
    with pair() as (engine, _, _, target):
        decode = start(Role.DECODE)
        export = decode.register(regions_of(target))
        alive, errors = weakref.ref(engine.agent), list[Exception]()

        def connect() -> None:
            try:
                while True:
                    engine.connect(decode.endpoint(), export, soon())
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=connect) for _ in range(3)]
        for thread in threads:
            thread.start()
        engine.close()
        for thread in threads:
            thread.join()
        decode.close()
        assert [type(error) for error in errors] == 3 * [EngineClosedError]
        errors.clear()
        assert alive() is None


def test_prepared_lists_do_not_keep_a_closed_agent_alive() -> None:
    with pair() as (engine, peer, *_):
        assert isinstance(peer, NixlPeer)
        alive = weakref.ref(engine.agent)
        engine.close()
        assert alive() is None
        assert not peer.side.lists
        with pytest.raises(EngineClosedError):
            engine.write(peer, items(0, [1], [2]))


ENDS = """
import atexit, threading
atexit.register(lambda: print([t.name for t in threading.enumerate()]))  # runs after those that come later
from pd_nixl.pump import Pump
pump = Pump("test", lambda: None)
"""


def test_a_program_that_ends_without_closing_stops_the_pump_before_python_ends_its_threads() -> None:
    child = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=True
    )
    assert child.stdout.strip() == "['MainThread']"
