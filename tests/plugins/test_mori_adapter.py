"""The adapter on the double of MORI-IO, whose detectors tell what the real library would crash on."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest
from doubles.detectors import MoriDouble, mori_double
from mori_cases import MoriCases
from mori_engines import SEVERAL, SOME, Start, quiescence, soon
from pd_mori import engine as adapter
from pd_mori.library import Library, NativeEngine
from pd_mori.transfer import MoriTransfer, Request

from pdcore.contract.outcome import Quiescence, TransferState
from pdcore.errors import EngineError, KVTransferError, RegistrationError
from pdcore.model import Deadline

if TYPE_CHECKING:
    from pd_mori.engine import MoriEngine, MoriPeer

    from pdcore.contract.regions import WriteBatch

__all__ = ["mori_double"]


class TestMoriAdapter(MoriCases):
    @pytest.fixture
    def library(self, mori_double: MoriDouble, monkeypatch: pytest.MonkeyPatch) -> Library:
        monkeypatch.setenv("MORI_IO_CP_TIMEOUT_MS", "1000")
        return Library(mori_double.mori.io)

    def test_a_transfer_past_its_deadline_is_held_until_mori_is_done_with_it(
        self, start: Start, mori_double: MoriDouble
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        with mori_double.faults.held():
            transfer = here.engine.write(peer, SEVERAL)
            assert transfer.wait(Deadline.after(0.01)) is TransferState.PENDING
            assert transfer.quiescence is Quiescence.IN_FLIGHT
            del transfer
            gc.collect()
            assert len(here.engine.flights) == 1
        here.engine.flights.settle(soon())
        assert len(here.engine.flights) == 0

    def test_a_failed_request_leaves_its_batch_undrained_until_the_peer_is_gone(
        self, start: Start, mori_double: MoriDouble
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        mori_double.faults.fail_entry(2)
        transfer = here.engine.write(peer, SEVERAL)
        assert transfer.wait(soon()) is TransferState.FAILED
        assert transfer.error is not None
        assert transfer.error.there_is.startswith("ERR_RDMA_OP: remote operation error")
        assert transfer.quiescence is Quiescence.IN_FLIGHT
        here.engine.disconnect(peer)
        assert transfer.quiescence is Quiescence.IN_FLIGHT, "it lives, and siblings may still land there"
        with pytest.raises(EngineError, match="cannot be connected"):
            here.connect(there)
        there.engine.close()
        here.connect(start())
        assert quiescence(transfer) is Quiescence.DRAINED, "the next connection saw that its port is closed"

    def test_peers_that_come_and_go_are_forgotten_those_that_are_in_doubt_when_they_are_gone(
        self, start: Start, mori_double: MoriDouble
    ) -> None:
        here, kept = start(), start()
        here.connect(kept)
        for doubtful in (False, True):
            there = start()
            peer = here.connect(there)
            if doubtful:
                mori_double.faults.fail_entry(0)
            state = TransferState.FAILED if doubtful else TransferState.DONE
            assert here.engine.write(peer, SOME).wait(soon()) is state
            for _ in range(2):
                here.engine.disconnect(peer)
            assert len(here.engine._remotes) == 1 + doubtful
            there.engine.close()
        here.engine.disconnect(here.connect(start()))
        assert len(here.engine._remotes) == 1

    def test_a_raw_write_that_fails_says_so(self, start: Start, mori_double: MoriDouble) -> None:
        here, there = start(), start()
        write = here.engine.prepare_raw(here.connect(there), SOME)
        mori_double.faults.fail_entry(0)
        with pytest.raises(KVTransferError, match="MORI failed to write to engine") as caught:
            write()
        assert caught.value.there_is.startswith("remote operation error")

    def test_closing_says_so_if_mori_never_ends_a_transfer_and_keeps_what_mori_writes_to(
        self, start: Start, mori_double: MoriDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        monkeypatch.setattr(adapter, "SETTLE", 0.05)
        with mori_double.faults.held():
            here.engine.write(peer, SOME)
            with pytest.raises(RegistrationError, match="cannot be deregistered") as refused:
                here.engine.deregister()
            assert refused.value.there_is.startswith("1 transfers are under way")
            with pytest.raises(EngineError, match="a MORI engine cannot be closed") as caught:
                here.engine.close()
            assert caught.value.there_is.startswith("1 transfers have not ended after 0.05 s")
            gc.collect()
            assert [here.engine] == adapter._unproven
        assert here.engine.flights.settle(soon())
        adapter._unproven.clear()

    # --- broken adapters: each fires the detector of what the real library would do ---------------------

    def test_an_adapter_that_drops_a_status_is_found(
        self, start: Start, mori_double: MoriDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        mori_double.expect("status dropped")

        def drops(transfer: MoriTransfer, engine: NativeEngine, requests: Iterable[Request]) -> str:
            for local, here, remote, there, sizes in requests:
                engine.batch_write([local], [here], [remote], [there], [sizes], [0])
            transfer._posted.set()
            return ""

        monkeypatch.setattr(MoriTransfer, "post", drops)
        with mori_double.faults.held():
            here.engine.write(peer, SOME)
            gc.collect()

    def test_an_adapter_that_passes_a_peers_descriptor_as_its_own_is_found(
        self, start: Start, mori_double: MoriDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        mori_double.expect("foreign local descriptor")
        with monkeypatch.context() as patch:
            patch.setattr(here.engine, "_memories", peer.memories)
            here.engine.write(peer, SOME).wait(soon())

    def test_an_adapter_that_passes_unequal_lengths_is_found(
        self, start: Start, mori_double: MoriDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        mori_double.expect("would abort")
        requests = type(here.engine)._requests

        def shortened(engine: MoriEngine, peer: MoriPeer, batch: WriteBatch) -> Iterator[Request]:
            for local, ours, remote, theirs, sizes in requests(engine, peer, batch):
                yield local, ours, remote, theirs, sizes[:-1]

        monkeypatch.setattr(type(here.engine), "_requests", shortened)
        assert here.engine.write(peer, SOME).wait(soon()) is TransferState.FAILED

    def test_an_adapter_that_deregisters_under_a_transfer_is_found(
        self, start: Start, mori_double: MoriDouble
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        mori_double.expect("deregistered in flight")
        with mori_double.faults.held():
            here.engine.write(peer, SOME)
            here.engine._forget_memory()
        here.engine.flights.settle(soon())
