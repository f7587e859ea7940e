from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from local_ends import Ends, reason, soon

import pdcore.local.engine as engine_module
from pdcore.contract.outcome import Quiescence, TransferState
from pdcore.contract.regions import Region, WriteBatch
from pdcore.errors import EngineError, FailureCode
from pdcore.local.address import LocalAddress
from pdcore.local.engine import LocalEngine
from pdcore.local.gate import WriteGate
from pdcore.local.options import LocalOptions
from pdcore.local.page import SLOTS, Page
from pdcore.local.under_way import UnderWay
from pdcore.model import Deadline


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = Ends(LocalOptions(), 4096)
    yield both
    both.close()


@pytest.fixture
def here() -> LocalAddress:
    return LocalAddress.of(Page())


def test_a_full_gate_says_so_and_has_room_after_a_revoke(here: LocalAddress) -> None:
    gate = WriteGate(Page().gate)
    writers = [LocalAddress.of(Page()) for _ in range(SLOTS)]
    for writer in writers:
        gate.admit(writer)
    with pytest.raises(EngineError, match="no free cell") as caught:
        gate.admit(here)
    assert f"{SLOTS} writers are admitted" in caught.value.there_is
    gate.expel(writers[7])
    gate.admit(here)


def test_an_engine_with_as_many_peers_as_it_can_hold_says_so_and_has_room_after_a_disconnect() -> None:
    under_way = UnderWay(Page().under_way)
    rows = [under_way.add(bytes(16)) for _ in range(SLOTS)]
    with pytest.raises(EngineError, match="as many peers as it can hold"):
        under_way.add(bytes(16))
    under_way.remove(rows[3])
    assert under_way.add(bytes(16)) == rows[3]


def test_a_row_is_kept_until_its_last_batch_ended() -> None:
    under_way = UnderWay(Page().under_way)
    row = under_way.add(bytes(16))
    assert under_way.enter(row)
    under_way.remove(row)
    assert not under_way.enter(row)
    assert under_way.add(bytes(16)) != row
    under_way.leave(row)
    assert under_way.add(bytes(16)) == row


def test_a_writer_that_was_not_admitted_is_refused(ends: Ends) -> None:
    stranger = LocalEngine(LocalOptions())
    stranger.register([Region.of("source", ends.source)])
    peer = stranger.connect(ends.reader.endpoint(), ends.export, soon())
    refused = stranger.write(peer, WriteBatch.of(0, 0, [0], [0], [64]))
    assert "does not accept writes from this engine" in reason(refused)
    assert not ends.target.any()
    stranger.close()


def test_a_batch_under_way_is_not_called_drained(ends: Ends) -> None:
    assert ends.writer._under_way.enter(ends.peer.row)
    assert ends.reader.revoke(ends.writer.endpoint(), Deadline.after(0.05)) is Quiescence.IN_FLIGHT
    ends.writer._under_way.leave(ends.peer.row)
    assert ends.reader.revoke(ends.writer.endpoint(), soon()) is Quiescence.DRAINED


def test_a_batch_for_another_peer_does_not_hold_up_a_revoke(ends: Ends) -> None:
    other = LocalEngine(LocalOptions())
    row = ends.writer._under_way.add(LocalAddress.decode(other.endpoint()).nonce)
    assert ends.writer._under_way.enter(row)
    assert ends.reader.revoke(ends.writer.endpoint(), soon()) is Quiescence.DRAINED
    ends.writer._under_way.leave(row)
    other.close()


def test_a_writer_that_goes_on_trying_after_a_revoke_is_still_found_silent(ends: Ends) -> None:
    stop = threading.Event()

    def insist() -> None:
        while not stop.is_set():
            ends.write()

    threads = [threading.Thread(target=insist) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert ends.reader.revoke(ends.writer.endpoint(), soon()) is Quiescence.DRAINED
    ends.target[:] = 0
    stop.set()
    for thread in threads:
        thread.join()
    assert not ends.target.any()


def test_a_connection_works_again_when_its_engine_is_admitted_again(ends: Ends) -> None:
    ends.reader.revoke(ends.writer.endpoint(), soon())
    reason(ends.write())
    ends.reader.admit(ends.writer.endpoint())
    assert ends.write().poll() is TransferState.DONE


def test_a_connection_to_memory_that_was_registered_anew_is_refused(ends: Ends) -> None:
    ends.reader.deregister()
    export = ends.reader.register([Region.of("other", ends.target)])
    ends.reader.admit(ends.writer.endpoint())
    assert "has registered other memory since" in reason(ends.write())
    peer = ends.writer.connect(ends.reader.endpoint(), export, soon())
    assert ends.write(peer).poll() is TransferState.DONE


def test_a_closed_peer_is_lost(ends: Ends) -> None:
    ends.reader.close()
    refused = ends.write()
    assert f"the peer is gone: process {os.getpid()}" in reason(refused)
    assert refused.error is not None
    assert refused.error.code is FailureCode.PEER_LOST


def test_a_close_that_cannot_prove_silence_says_who_is_writing(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SETTLE", 0.05)
    assert ends.writer._under_way.enter(ends.peer.row)
    with pytest.raises(EngineError, match="cannot prove that no byte moves") as caught:
        ends.reader.close()
    assert f"the writes of process {os.getpid()}" in caught.value.there_is
    ends.writer._under_way.leave(ends.peer.row)


def test_a_write_to_a_disconnected_peer_fails(ends: Ends) -> None:
    ends.writer.disconnect(ends.peer)
    assert "the peer was disconnected" in reason(ends.write())
