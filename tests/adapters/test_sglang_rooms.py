"""SGLang's scheduler calls on the adapter's senders and receivers, over real managers, engine and sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pdcore_sglang.handles import PdcoreReceiver, PdcoreSender
from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.common.conn import KVTransferError
from sglang_rig import PAGE, Pair, paired

End = PdcoreSender | PdcoreReceiver


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    with paired(monkeypatch, state=1) as made:
        yield made


def until(condition: Callable[[], bool], what: str) -> None:
    """Look as often as SGLang's event loop does."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


def comes_to(end: End, state: int) -> None:
    until(lambda: end.poll() == state, f"room {end.bootstrap_room} stays {end.poll()}")


def reason(end: End) -> str:
    with pytest.raises(KVTransferError) as raised:
        end.failure_exception()
    return str(raised.value.failure_reason)


def pages(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(numbers, np.int32)


def same(pair: Pair, here: tuple[int, ...], there: tuple[int, ...]) -> bool:
    buffers = zip(pair.source.kv, pair.target.kv, strict=True)
    return all((a[list(here)] == b[list(there)]).all() for a, b in buffers)


def test_chunks_metadata_and_state_arrive(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    assert sender.poll() == KVPoll.Bootstrapping
    receiver.send_metadata(pages(4, 5, 1), 3, [pages(2)], decode_prefix_len=0)
    comes_to(sender, KVPoll.WaitingForInput)
    assert sender.pop_decode_prefix_len() == 0
    sender.init(3, 6)
    sender.send(pages(7, 8), num_kv_tokens=8)
    sender.send(pages(9), [pages(0)], num_kv_tokens=3)
    comes_to(sender, KVPoll.Success)
    comes_to(receiver, KVPoll.Success)
    assert receiver.is_abort_release_safe()
    assert same(pair, (7, 8, 9), (4, 5, 1))
    assert (pair.source.state[0][0] == pair.target.state[0][2]).all()
    for a, b in zip(pair.source.fields, pair.target.fields, strict=True):
        assert (a[6] == b[3]).all()
    sender.clear()
    figures = sender.get_transfer_metric()
    assert figures.transfer_total_bytes is not None
    assert figures.transfer_total_bytes > 3 * sum(b[0].nbytes for b in pair.source.kv)
    assert figures.transfer_latency_s is not None
    assert figures.transfer_latency_s > 0
    receiver.clear()
    assert not pair.decode.receivers


def test_what_decode_holds_is_neither_announced_nor_sent(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    receiver.send_metadata(pages(4), 3, [pages(2)], decode_prefix_len=2 * PAGE)
    comes_to(sender, KVPoll.WaitingForInput)
    assert sender.pop_decode_prefix_len() == 2 * PAGE
    sender.init(1, 6)
    sender.send(pages(9), [pages(0)])
    comes_to(receiver, KVPoll.Success)
    assert same(pair, (9,), (4,))


def test_the_source_is_read_after_the_event_of_an_early_send(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    receiver.send_metadata(pages(4, 5), 3, [pages(2)])
    comes_to(sender, KVPoll.WaitingForInput)
    sender.init(2, 6)
    event = threading.Event()
    sender._early_send_wait_event = event
    sender.send(pages(7))
    assert sender._early_send_wait_event is None
    sender.send(pages(8), [pages(0)])
    pair.source.kv[0][7] = 99  # the forward pass that the event waits for
    assert receiver.poll() == KVPoll.Transferring
    event.set()
    comes_to(receiver, KVPoll.Success)
    assert same(pair, (7, 8), (4, 5))


def test_an_abort_of_decode_before_it_has_pages_frees_prefill(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    receiver.abort()
    assert receiver.poll() == KVPoll.Failed
    comes_to(sender, KVPoll.Failed)
    assert "SGLang gave the request up before it had pages for it" in reason(sender)
    assert not receiver.abort_notified
    receiver.clear()
    again = pair.sender(1), pair.receiver(1)
    comes_to(again[1], KVPoll.WaitingForInput)


def test_an_abort_of_decode_keeps_its_pages_until_prefill_is_silent(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    receiver.send_metadata(pages(4), 3, [pages(2)])
    comes_to(sender, KVPoll.WaitingForInput)
    receiver.abort()
    assert receiver.poll() == KVPoll.Failed
    assert pair.decode.enable_deferred_decode_kv_release
    assert len(receiver.bootstrap_infos) == 0
    until(lambda: pair.decode.is_abort_release_safe(1, 0), "the pages never come back")
    pair.decode.clear_deferred_abort_state(1)
    receiver.clear()
    assert pair.decode.is_abort_release_safe(1, 0)
    comes_to(sender, KVPoll.Failed)


def test_an_abort_of_prefill_fails_decode_and_frees_the_room(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    receiver.send_metadata(pages(4), 3, [pages(2)])
    comes_to(sender, KVPoll.WaitingForInput)
    sender.abort()
    assert sender.poll() == KVPoll.Failed
    comes_to(receiver, KVPoll.Failed)
    assert "prefill aborted room 1" in reason(receiver)
    receiver.clear()
    assert pair.sender(1).poll() == KVPoll.Bootstrapping


def test_a_room_id_that_is_in_use_fails_the_second_alone(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    second, other = pair.sender(1), pair.receiver(1)
    assert (second.poll(), other.poll()) == (KVPoll.Failed, KVPoll.Failed)
    assert "room 1 is open" in reason(second)
    assert "room 1 is open" in reason(other)
    other.abort()
    other.clear()
    assert pair.decode.receivers == {1: receiver}
    comes_to(receiver, KVPoll.WaitingForInput)
    assert sender.poll() == KVPoll.Bootstrapping


def test_rooms_and_addresses_that_can_be_none_fail_their_request(pair: Pair) -> None:
    assert pair.sender(-3).poll() == KVPoll.Failed
    none = PdcoreReceiver(pair.decode, pair.bootstrap, None)
    assert none.poll() == KVPoll.Failed
    nowhere = PdcoreReceiver(pair.decode, "no:where:at:all", 2)
    nowhere.init(0)
    assert nowhere.poll() == KVPoll.Failed


def test_what_pdcore_refuses_fails_the_room_on_both_sides(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    receiver.send_metadata(pages(4, 99), 3, [pages(2)])
    assert receiver.poll() == KVPoll.Failed
    assert "outside the pool" in reason(receiver)
    comes_to(sender, KVPoll.Failed)


def test_a_defect_of_the_adapter_ends_its_room_and_nothing_else(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    monkeypatch.setattr("pdcore_sglang.handles._lists", lambda _: 1 // 0)
    receiver.send_metadata(pages(4), 3, [pages(2)])
    assert receiver.poll() == KVPoll.Failed
    assert "something raised on the decode side" in reason(receiver)
    comes_to(sender, KVPoll.Failed)


def test_a_rank_whose_peer_failed_fails_too(pair: Pair) -> None:
    sender, receiver = pair.sender(1), pair.receiver(1)
    comes_to(receiver, KVPoll.WaitingForInput)
    with pytest.raises(KVTransferError) as raised:
        receiver.failure_exception()  # the scheduler saw the poll of another rank of this worker
    assert raised.value.is_from_another_rank
    assert receiver.poll() == KVPoll.Failed
    comes_to(sender, KVPoll.Failed)


def test_a_recomputation_is_refused_with_its_reason(pair: Pair) -> None:
    receiver = pair.receiver(1)
    pair.decode.submit_prefill_recompute(receiver, {"rid": "x"})
    assert receiver.poll() == KVPoll.Failed
    assert "pause generation in a mode that keeps the KV cache" in reason(receiver)


def test_page_sizes_that_differ_fail_requests_and_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    with paired(monkeypatch, sizes=(PAGE, 2 * PAGE)) as pair:
        for room in (1, 2):
            sender, receiver = pair.sender(room), pair.receiver(room)
            comes_to(receiver, KVPoll.Failed)
            assert "layout.page_size: prefill 4, decode 8" in reason(receiver)
            receiver.clear()
            sender.abort()


def test_decode_asks_which_data_parallel_rank_has_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with paired(monkeypatch, attn_dp_size=2, attn_dp_rank=1) as pair:
        receiver, sender = pair.receiver(2), pair.sender(2)  # by its number the room would be rank 0's
        comes_to(receiver, KVPoll.WaitingForInput)
        receiver.send_metadata(pages(4), 3)
        comes_to(sender, KVPoll.WaitingForInput)
        sender.init(1, 6)
        sender.send(pages(9))
        comes_to(receiver, KVPoll.Success)
        assert same(pair, (9,), (4,))


def test_a_prefill_that_is_not_there_fails_the_request_with_the_reason(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic
    receiver = PdcoreReceiver(pair.decode, "127.0.0.1:9", 5)
    receiver.init(0)
    assert receiver.poll() == KVPoll.Bootstrapping
    monkeypatch.setattr("pdcore_sglang.handles.time.monotonic", lambda: now() + 100)
    comes_to(receiver, KVPoll.Failed)
    assert "127.0.0.1:9" in reason(receiver)
