from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pytest

from pdcore.contract.engine import EngineCapabilities, Peer, TransferEngine
from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.contract.regions import Region, RegionInfo, WriteBatch
from pdcore.errors import EngineClosedError, EngineError, PlanError, RegistrationError
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import CPU, Certainty, Deadline, Device, DeviceKind, EffectiveTransport

NATIVE = b"what peers of this engine need"


class CountingEngine(TransferEngine):
    """Moves nothing; notes what reaches the adapter."""

    capabilities = EngineCapabilities(memory_kinds=frozenset({DeviceKind.CPU, DeviceKind.CUDA}))
    effective_transport = EffectiveTransport("none", Certainty.VERIFIED)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.refuse = False
        self.got: tuple[RegionInfo, ...] = ()

    def endpoint(self) -> bytes:
        return b"here"

    def do_register(self, regions: Sequence[Region]) -> bytes:
        self.calls.append(f"register {len(regions)}")
        if self.refuse:
            raise RegistrationError(f"region {regions[0].name!r} was refused", "no memory", "free some")
        return NATIVE

    def do_deregister(self) -> None:
        self.calls.append("deregister")

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        self.calls.append(f"connect {endpoint.decode()}")
        assert native == NATIVE
        self.got = regions
        return Peer(endpoint, regions)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        self.calls.append(f"write {len(batch)}")
        return Finished()

    def do_disconnect(self, peer: Peer) -> None:
        self.calls.append("disconnect")

    def do_close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def real() -> Iterator[LocalEngine]:
    engine = LocalEngine(LocalOptions())
    yield engine
    engine.close()


def soon() -> Deadline:
    return Deadline.after(10)


def regions(*sizes: int) -> list[Region]:
    return [Region.of(f"r{i}", np.zeros(size, np.uint8)) for i, size in enumerate(sizes)]


def sealed(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "big") + body


# register


def test_registered_regions_and_their_lengths_are_kept(engine: CountingEngine) -> None:
    some = regions(10, 20)
    engine.register(some)
    assert engine.regions == tuple(some)
    assert engine.region_lengths.dtype == np.uint64
    assert engine.region_lengths.tolist() == [10, 20]


@pytest.mark.parametrize(
    ("wrong", "happened", "there_is"),
    [
        (Region("r9", 4096, 0), "region 'r9' is empty", "0 bytes on cpu"),
        (Region("r0", 4096, 8), "region 'r0' is registered twice", "10 bytes on cpu"),
        (
            Region("r9", 4096, 8, Device(DeviceKind.NPU, 3)),
            "region 'r9' lies on npu:3, which this engine cannot reach",
            "8 bytes on npu:3",
        ),
        (
            Region("r9", 4096, 8, item_len=3),
            "region 'r9' is no whole number of items of 3 bytes",
            "8 bytes on cpu",
        ),
    ],
)
def test_a_region_that_cannot_be_registered_is_named(
    engine: CountingEngine, wrong: Region, happened: str, there_is: str
) -> None:
    with pytest.raises(RegistrationError) as caught:
        engine.register([*regions(10), wrong])
    assert (caught.value.happened, caught.value.there_is) == (happened, there_is)
    assert caught.value.to_do == "register each region once, non-empty, whole, on one of: cpu, cuda"
    assert (engine.calls, engine.regions) == ([], ())


def test_memory_is_registered_in_one_call(engine: CountingEngine) -> None:
    engine.register(regions(10, 20))
    with pytest.raises(RegistrationError, match="already has its memory registered") as caught:
        engine.register(regions(10))
    assert caught.value.there_is == "2 regions"
    assert engine.region_lengths.tolist() == [10, 20]


def test_after_a_refused_registration_nothing_is_registered(engine: CountingEngine) -> None:
    engine.refuse = True
    with pytest.raises(RegistrationError, match="'r0' was refused"):
        engine.register(regions(10))
    engine.refuse = False
    engine.register(regions(30))
    assert engine.region_lengths.tolist() == [30]


def test_deregister_takes_everything_back_once(engine: CountingEngine) -> None:
    engine.register(regions(10))
    engine.deregister()
    engine.deregister()
    assert engine.calls == ["register 1", "deregister"]
    assert (engine.regions, engine.region_lengths.tolist()) == ((), [])
    engine.register(regions(5))
    assert engine.region_lengths.tolist() == [5]


# connect


def test_a_peer_knows_the_other_sides_regions(engine: CountingEngine) -> None:
    export = CountingEngine().register([*regions(10), Region("gpu", 4096, 20, Device(DeviceKind.CUDA, 1))])
    peer = engine.connect(b"there", export, soon())
    assert engine.got == (RegionInfo("r0", 10, CPU), RegionInfo("gpu", 20, Device(DeviceKind.CUDA, 1)))
    assert peer.endpoint == b"there"
    assert peer.regions == engine.got
    assert peer.region_lengths.dtype == np.uint64
    assert peer.region_lengths.tolist() == [10, 20]


def test_every_damaged_byte_of_an_export_is_noticed(engine: CountingEngine) -> None:
    export = CountingEngine().register(regions(10))
    for at in range(len(export)):
        damaged = bytearray(export)
        damaged[at] ^= 1
        with pytest.raises(EngineError, match="export is corrupt"):
            engine.connect(b"there", bytes(damaged), soon())
    assert engine.calls == []


@pytest.mark.parametrize("keep", [0, 3, 4, 20])
def test_a_truncated_export_is_corrupt(engine: CountingEngine, keep: int) -> None:
    export = CountingEngine().register(regions(10))
    with pytest.raises(EngineError, match="export is corrupt") as caught:
        engine.connect(b"there", export[:keep], soon())
    assert caught.value.there_is == f"{keep} bytes whose checksum does not match"
    assert caught.value.to_do.startswith("pair again")


def test_an_export_of_another_version_is_refused(engine: CountingEngine) -> None:
    body = msgspec.msgpack.encode({"version": 2, "regions": [], "native": b""})
    with pytest.raises(EngineError, match="export cannot be read") as caught:
        engine.connect(b"there", sealed(body), soon())
    assert caught.value.there_is == "version 2 there, 1 here"
    assert caught.value.to_do == "run the same pdcore on both sides"


def test_an_export_that_has_other_fields_is_of_another_version(engine: CountingEngine) -> None:
    body = msgspec.msgpack.encode({"version": 2, "areas": []})
    with pytest.raises(EngineError, match="export cannot be read") as caught:
        engine.connect(b"there", sealed(body), soon())
    assert "missing required field" in caught.value.there_is


# write


def test_a_batch_is_proven_before_the_adapter_sees_it(engine: CountingEngine) -> None:
    engine.register(regions(10))
    peer = engine.connect(b"there", CountingEngine().register(regions(8)), soon())
    with pytest.raises(PlanError, match="leaves its local region"):
        engine.write(peer, WriteBatch.of(0, 0, [3], [0], [8]))
    with pytest.raises(PlanError, match="leaves its remote region"):
        engine.write(peer, WriteBatch.of(0, 0, [0], [1], [8]))
    assert engine.calls == ["register 1", "connect there"]
    assert engine.write(peer, WriteBatch.of(0, 0, [2], [0], [8])).poll() is TransferState.DONE
    assert engine.calls[-1] == "write 1"


def test_nothing_can_be_written_from_memory_that_is_not_registered(engine: CountingEngine) -> None:
    peer = engine.connect(b"there", CountingEngine().register(regions(8)), soon())
    with pytest.raises(PlanError, match="names a local region that does not exist") as caught:
        engine.write(peer, WriteBatch.of(0, 0, [0], [0], [8]))
    assert caught.value.there_is == "regions [0], 0 registered"


def test_an_empty_batch_is_done_without_the_adapter(engine: CountingEngine) -> None:
    peer = engine.connect(b"there", CountingEngine().register(regions(8)), soon())
    transfer = engine.write(peer, WriteBatch.empty())
    assert (transfer.poll(), transfer.quiescence) == (TransferState.DONE, Quiescence.DRAINED)
    assert transfer.wait(soon()) is TransferState.DONE
    assert engine.calls == ["connect there"]


# the end


def test_close_reaches_the_adapter_once(engine: CountingEngine) -> None:
    engine.close()
    engine.close()
    assert engine.calls == ["close"]


def test_a_closed_engine_says_so(engine: CountingEngine) -> None:
    peer = engine.connect(b"there", CountingEngine().register(regions(8)), soon())
    engine.close()
    for use in (
        lambda: engine.register(regions(8)),
        lambda: engine.connect(b"there", b"", soon()),
        lambda: engine.write(peer, WriteBatch.empty()),
    ):
        with pytest.raises(EngineClosedError, match=r"used after close\(\)") as caught:
            use()
        assert caught.value.to_do == "start a new engine"
    assert engine.calls == ["connect there", "close"]


def test_an_engine_has_nothing_to_admit_or_revoke_unless_it_says_so(engine: CountingEngine) -> None:
    engine.admit(b"there")
    assert engine.revoke(b"there", soon()) is Quiescence.UNKNOWN


def in_forked_child(question: str, engine: TransferEngine) -> str:
    """Answer a question about an engine in a forked child of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if question == "close":
                engine.close()
                answer = "nothing raised"
            else:
                engine.register(regions(8))
                answer = "registered"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return answer


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_cannot_use_its_parents_engine(real: LocalEngine) -> None:
    answer = in_forked_child("register", real)
    assert answer.startswith("EngineClosedError: a transfer engine was used in a forked child")
    assert f"it was started in process {os.getpid()}" in answer
    assert "start workers with the 'spawn' method" in answer


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_that_closes_leaves_the_parents_engine_alone(real: LocalEngine) -> None:
    assert in_forked_child("close", real) == "nothing raised"
    source, target = np.full(64, 7, np.uint8), np.zeros(64, np.uint8)
    reader = LocalEngine(LocalOptions())
    real.register([Region.of("source", source)])
    export = reader.register([Region.of("target", target)])
    reader.admit(real.endpoint())
    peer = real.connect(reader.endpoint(), export, soon())
    transfer = real.write(peer, WriteBatch.of(0, 0, [0], [0], [64]))
    assert transfer.wait(soon()) is TransferState.DONE
    assert target.tolist() == source.tolist()
    real.close()
    reader.close()


def test_the_raw_write_of_an_engine_moves_the_same_bytes(real: LocalEngine) -> None:
    source, target = np.arange(64, dtype=np.uint8), np.zeros(64, np.uint8)
    reader = LocalEngine(LocalOptions())
    real.register([Region.of("source", source)])
    export = reader.register([Region.of("target", target)])
    reader.admit(real.endpoint())
    peer = real.connect(reader.endpoint(), export, soon())
    batch = WriteBatch.of(0, 0, [0, 32], [32, 0], [32, 32])
    TransferEngine.prepare_raw(real, peer, batch)()
    assert target.tolist() == [*range(32, 64), *range(32)]
    target[:] = 0
    real.prepare_raw(peer, batch)()
    assert target.tolist() == [*range(32, 64), *range(32)]
    real.close()
    reader.close()


def test_endpoints_are_unique_per_incarnation(real: LocalEngine) -> None:
    other = LocalEngine(LocalOptions())
    assert real.endpoint() != other.endpoint()
    other.close()


FIRST_READERS = """
import importlib, sys, threading, zlib
import msgspec
from pdcore import model
from pdcore.contract import export, regions

sys.setswitchinterval(1e-6)
for _ in range(20):
    for module in (model, regions, export):
        importlib.reload(module)
    infos = tuple(regions.RegionInfo(str(n), 8, model.CPU, 8) for n in range(20))
    body = msgspec.msgpack.encode(export.Export(export.EXPORT_VERSION, infos, b""))
    sealed = zlib.crc32(body).to_bytes(4, "big") + body
    start = threading.Barrier(8)

    def read():
        start.wait()
        export.open_export(sealed)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_the_first_exports_may_be_read_by_several_threads_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_READERS], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
