"""What an engine declares of itself, each tried where it would show if it were not so."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import numpy as np
import pytest

from pdcore.contract.engine import Peer
from pdcore.contract.export import open_export, seal_export
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import Region, WriteBatch
from pdcore.errors import PDCoreError, RegistrationError
from pdcore.model import Deadline, Device, DeviceKind
from pdcore.plan.batches import split_entries
from pdcore.testing.ends import MIB, STILL, Link, require_honest
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.far import commands as c
from pdcore.testing.memory import GUARD, MemoryWatch
from pdcore.testing.rules import Rule

SOME = WriteBatch.of(0, 0, [0], [512], [1000])

FULL = 16 * MIB
"""More bytes than the pipes to a stopped receiver hold."""

SOON = 0.3
"""Seconds in which a write to a stopped receiver either ends or fills the pipes."""

DEVICES = {
    DeviceKind.CUDA: ("/dev/nvidia[0-9]*", "/dev/kfd"),
    DeviceKind.NPU: ("/dev/davinci[0-9]*",),
}

BAD = {
    "one byte too many": ([MIB - 63], [64]),
    "one of many lies before": ([*range(0, 99 * 4096, 4096), 2**64 - 64], [*[4096] * 99, 64]),
}


class Promises:
    """The group ``promises``: quiescence, ``drained_on_failure``, ``silent_after_close`` and the others."""

    @Rule(
        "PENDING is never DRAINED, DONE has landed, and what is called DRAINED cannot land when a stopped "
        "receiver goes on (nor can anything after close() of an engine that is silent_after_close)",
        "quiescence is answered without a look at the library; bytes that sockets hold count as delivered",
    )
    def test_what_a_stopped_receiver_has_not_read_is_not_called_drained(
        self, engines: EnginesUnderTest
    ) -> None:
        link = engines.link([FULL], [FULL])
        link.deliver(SOME)
        limit = link.near.engine.capabilities.max_entry_bytes
        batch = split_entries(WriteBatch.of(0, 0, [0], [0], [FULL]), limit)
        memory = link.far.memory
        link.far.process.pause()
        try:
            transfer = link.submit(batch)
            _require_pending_is_not_drained(transfer)
            transfer.wait(Deadline.after(SOON))
            _require_pending_is_not_drained(transfer)
            silent = self._end(link, transfer)
            watch = MemoryWatch(memory)
        finally:
            link.far.process.resume()
        if silent:
            assert not watch.await_change(Deadline.after(STILL)), f"bytes landed after {silent}"

    def _end(self, link: Link, transfer: Transfer) -> str:
        """See a transfer to a stopped receiver to its end; return what makes it silent, or nothing."""
        engine, state = link.near.engine, transfer.poll()
        if state is TransferState.DONE:
            landed = np.array_equal(link.far.memory[0], link.near.memory[0].bytes)
            assert landed, "a transfer was DONE whose bytes had not landed"
            return "DONE"
        if state is TransferState.FAILED and require_honest(engine, transfer) is Quiescence.DRAINED:
            return f"a write that FAILED and was DRAINED ({transfer.error})"
        link.near.close()
        ended = transfer.wait(link.deadline())
        assert ended is not TransferState.PENDING, "a transfer was PENDING after close()"
        if transfer.quiescence is Quiescence.DRAINED:
            return f"close(), which left a transfer {ended.name} and DRAINED"
        return (
            "close(), and the engine is silent_after_close" if engine.capabilities.silent_after_close else ""
        )

    @Rule(
        "what a transfer under way says is true when its peer is disconnected, too",
        "disconnect() drops the library's handle, and then nobody knows when the bytes have landed",
    )
    def test_a_peer_is_disconnected_while_bytes_move(self, engines: EnginesUnderTest) -> None:
        link = engines.link([FULL], [FULL])
        memory = link.far.memory
        pump = link.pump()
        link.near.engine.disconnect(link.peer)
        assert pump.stop(engines.deadline()), "a write had not ended after its peer was disconnected"
        watch = MemoryWatch(memory)
        assert pump.error is None or isinstance(pump.error, PDCoreError), f"write raised {pump.error!r}"
        assert pump.last is not None
        failed = pump.last.poll() is TransferState.FAILED
        said = require_honest(link.near.engine, pump.last) if failed else pump.last.quiescence
        if said is Quiescence.DRAINED:
            assert not watch.await_change(Deadline.after(STILL)), "bytes landed after a write was DRAINED"

    @Rule(
        "with remote_bounds_checked the far side refuses an address outside its regions, whatever the writer "
        "believes, and nothing lands there; a write that fails for it says how drained it is",
        "the bounds are checked by the writer only, or not at all; one bad entry fails the batch while the "
        "others go on",
    )
    @pytest.mark.parametrize("bad", BAD)
    def test_raw_writes_out_of_bounds(self, engines: EnginesUnderTest, bad: str) -> None:
        link = engines.link()
        engine, (there, lengths) = link.near.engine, BAD[bad]
        if len(lengths) > 1 and not engine.capabilities.remote_bounds_checked:
            return  # who does not check may crash
        batch = WriteBatch.of(0, 0, [0] * len(lengths), np.array(there, np.uint64), lengths)
        peer = _deceived(link)
        try:
            transfer = link.bounded(lambda: engine.do_write(peer, batch), "write")
        except PDCoreError:
            transfer = None
        refused = transfer is None or (
            link.bounded(lambda: transfer.wait(link.deadline()), "wait") is TransferState.FAILED
        )
        if not engine.capabilities.remote_bounds_checked:
            return
        assert refused, "declared remote_bounds_checked, and a write outside the regions was DONE"
        if transfer is not None and require_honest(engine, transfer) is Quiescence.DRAINED:
            link.far.require_still("a write that FAILED and was DRAINED")
        assert not link.far.guards(), "declared remote_bounds_checked, and bytes landed outside the regions"
        assert link.far.process.alive

    @Rule(
        "with remote_bounds_checked the far side refuses memory that is registered no more",
        "the writer checks against what it was told when it connected, and the far side does not check",
    )
    def test_memory_that_is_registered_no_more_is_refused(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        if not link.near.engine.capabilities.remote_bounds_checked:
            return  # who does not check may write, or crash
        link.deliver(SOME)
        link.far.process.ask(c.DeregisterMemory())
        with contextlib.suppress(PDCoreError):
            link.fail(WriteBatch.of(0, 0, [0], [9000], [1000]))
        link.require_arrived(SOME)

    @Rule(
        "an engine can reach every kind of memory that it declares; what is said to lie on a device that is "
        "not there is refused",
        "memory_kinds lists what the library could do elsewhere, and registering takes any address",
    )
    @pytest.mark.parametrize("kind", DEVICES, ids=lambda kind: kind.value)
    def test_declared_memory_is_reached(self, engines: EnginesUnderTest, kind: DeviceKind) -> None:
        near = engines.near()
        if kind not in near.engine.capabilities.memory_kinds:
            return  # that it is refused is a test of the group ``contract``
        if any(list(Path("/").glob(place[1:])) for place in DEVICES[kind]):
            return  # cannot be proven without a library for that device
        host = near.memory[0].region
        near.engine.deregister()
        with pytest.raises(RegistrationError, match="the-bad-one"):
            near.engine.register([Region("the-bad-one", host.address, host.length, Device(kind))])
        near.engine.register([host])

    @Rule(
        "an engine opens no more file descriptors than it declares, at its start and for a peer",
        "the library opens a listener, a queue and sockets for each of its own threads, too",
    )
    def test_declared_descriptors_are_enough(self, engines: EnginesUnderTest) -> None:
        far, before = engines.far(), _open_descriptors()
        near = engines.near()
        started = _open_descriptors()
        Link(near, far).deliver(SOME)
        declared = near.engine.capabilities
        if declared.descriptors:
            opened, peers = started - before, _open_descriptors() - started
            assert opened <= declared.descriptors, f"{opened} at start, {declared.descriptors} declared"
            assert peers <= declared.descriptors_per_peer, (
                f"{peers} for a peer, {declared.descriptors_per_peer} declared"
            )

    @Rule(
        "a batch stays as the core made it",
        "addresses are computed in place, in arrays that the core submits again or shares",
    )
    def test_a_batch_is_not_changed(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        columns = [[1, 4099, 9000], [3, 9001, 5000], [7, 64, 1000]]
        batch = WriteBatch.of(0, 0, *columns)
        link.deliver(batch)
        now = [batch.local_offsets.tolist(), batch.remote_offsets.tolist(), batch.lengths.tolist()]
        assert now == columns, "write() has changed the batch"
        link.deliver(batch)
        link.require_arrived(batch)


def _open_descriptors() -> int:
    gc.collect()  # or what is garbage by now would close some in between
    return len(os.listdir("/proc/self/fd"))


def _require_pending_is_not_drained(transfer: Transfer) -> None:
    said = transfer.quiescence  # asked first: it may end in between, but not begin
    if transfer.poll() is TransferState.PENDING:
        assert said is not Quiescence.DRAINED, "a transfer that is PENDING says that it is DRAINED"


def _deceived(link: Link) -> Peer:
    """Connect with an export that says that the far regions are longer than they are."""
    export = open_export(link.far.export)
    longer = [Region(r.name, 0, r.length + GUARD, r.device) for r in export.regions]
    try:
        return link.connect(seal_export(longer, export.native))
    except PDCoreError:
        return link.peer  # it has seen through it
