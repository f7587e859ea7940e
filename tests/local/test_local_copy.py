from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from local_ends import Ends, reason, soon

from pdcore.contract.outcome import TransferState
from pdcore.contract.regions import Region, WriteBatch
from pdcore.errors import FailureCode, RegistrationError
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.local.vectors import CHUNK_BYTES, Vectors

PAGE = mmap.PAGESIZE


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = Ends(LocalOptions(), 4096)
    yield both
    both.close()


def test_chunks_are_bounded_in_bytes_and_entries() -> None:
    long = np.array([CHUNK_BYTES * 8 + 1], np.uint64)
    assert permits(long) == 9
    assert permits(np.full(10_000, 16, np.uint64)) == 10
    assert permits(np.full(64, 128, np.uint64)) == 1
    assert permits(np.full(100, CHUNK_BYTES // 4, np.uint64)) == 25


def permits(lengths: npt.NDArray[np.uint64]) -> int:
    source = np.zeros(int(lengths.sum()), np.uint8)
    target = np.ones(len(source), np.uint8)
    offsets = lengths.cumsum() - lengths
    asked: list[None] = []
    vectors = Vectors(
        offsets + np.uint64(source.ctypes.data), offsets + np.uint64(target.ctypes.data), lengths
    )
    vectors.copy(os.getpid(), lambda: asked.append(None))
    assert not target.any()
    return len(asked)


class Hole:
    """Four pages of which the third can be taken away and given back."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        self._at = self.bytes.ctypes.data + 2 * PAGE
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p

    def open(self) -> None:
        assert self._libc.munmap(ctypes.c_void_p(self._at), ctypes.c_size_t(PAGE)) == 0

    def fill(self) -> None:
        fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        access = mmap.PROT_READ | mmap.PROT_WRITE
        size = ctypes.c_size_t(PAGE)
        assert (
            self._libc.mmap(ctypes.c_void_p(self._at), size, access, fixed, -1, ctypes.c_long(0)) == self._at
        )


def test_a_copy_goes_on_where_the_kernel_stopped() -> None:
    hole = Hole()
    source = np.random.default_rng(2).integers(1, 256, 4 * PAGE, np.uint8)
    sizes = np.array([100, 2 * PAGE, 2 * PAGE - 100], np.uint64)
    offsets = sizes.cumsum() - sizes
    vectors = Vectors(
        offsets + np.uint64(source.ctypes.data), offsets + np.uint64(hole.bytes.ctypes.data), sizes
    )
    hole.open()
    turns = iter([lambda: None, hole.fill])
    vectors.copy(os.getpid(), lambda: next(turns)())
    assert np.array_equal(hole.bytes, source)


def test_memory_that_is_no_longer_mapped_fails_the_write_and_names_the_region() -> None:
    hole, writer, reader = Hole(), LocalEngine(LocalOptions()), LocalEngine(LocalOptions())
    source = np.ones(4 * PAGE, np.uint8)
    writer.register([Region.of("layer.0.k", source)])
    export = reader.register(
        [Region.of("layer.1.k", np.zeros(64, np.uint8)), Region.of("layer.1.v", hole.bytes)]
    )
    reader.admit(writer.endpoint())
    peer = writer.connect(reader.endpoint(), export, soon())
    hole.open()
    failed = writer.write(peer, WriteBatch.of(0, 1, [0], [0], [4 * PAGE]))
    said = reason(failed)
    hole.fill()
    assert f"could not copy to region 'layer.1.v' of process {os.getpid()}" in said
    assert "in region 'layer.0.k'" in said
    assert failed.error is not None
    assert failed.error.code is FailureCode.ENGINE
    writer.close()
    reader.close()


def test_a_raw_write_moves_the_same_bytes_and_can_be_repeated(ends: Ends) -> None:
    raw = ends.writer.prepare_raw(ends.peer, WriteBatch.of(0, 0, [0, 100], [100, 0], [100, 100]))
    for _ in range(2):
        ends.target[:] = 0
        raw()
        assert np.array_equal(ends.target[:200], np.roll(ends.source[:200], 100))
    assert not ends.target[200:].any()


def test_memory_that_is_not_mapped_cannot_be_registered() -> None:
    engine = LocalEngine(LocalOptions())
    with pytest.raises(RegistrationError, match="region 'ghost' is not mapped in this process"):
        engine.register([Region("ghost", PAGE, 4096)])
    engine.close()


def test_batches_that_wait_for_a_copy_thread_end_when_the_engine_closes() -> None:
    both = Ends(LocalOptions(copy_threads=1), 32 << 20)
    batch = WriteBatch.of(0, 0, [0], [0], [32 << 20])
    transfers = [both.writer.write(both.peer, batch) for _ in range(50)]
    both.writer.close()
    assert all(t.poll() is not TransferState.PENDING for t in transfers)
    assert "this engine was closed" in reason(transfers[-1])
    assert not [t.name for t in threading.enumerate() if t.name.startswith("pdcore-local-copy")]
    both.close()


def test_copy_threads_make_the_engine_asynchronous() -> None:
    for threads in (0, 2):
        engine = LocalEngine(LocalOptions(copy_threads=threads))
        assert engine.capabilities.asynchronous is (threads > 0)
        names = {t.name for t in threading.enumerate()}
        assert ("pdcore-local-copy-1" in names) is (threads > 1)
        engine.close()


@pytest.mark.parametrize("threads", [-1, 65])
def test_an_impossible_number_of_copy_threads_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="copy_threads"):
        LocalOptions(copy_threads=threads)
