"""Thousands of rooms over one pairing: nothing grows with them."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from pair import Pair, config, finish, paired, soon

from pdcore import Deadline, KVPoll, RoomId, TransferModel
from pdcore.model import Generation
from pdcore.prefill import PrefillManager
from pdcore.protocol.stimuli import Heard
from pdcore.wire import RequestMetadata

ROOMS, IN_FLIGHT = 5_000, 50


def held() -> tuple[int, int]:
    """Sockets and threads of this process."""
    targets = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            targets.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # the one that lists them
            continue
    return sum(target.startswith("socket:") for target in targets), threading.active_count()


def serve(pair: Pair, rooms: range) -> None:
    open_rooms = [pair.open(room) for room in rooms]
    for slot, (sender, receiver) in enumerate(open_rooms):
        sender.init(1)
        receiver.send_metadata([slot])
        sender.send([slot])
    for sender, receiver in open_rooms:
        deadline = soon()
        while sender.poll() is not KVPoll.SUCCESS and not deadline.expired:
            sender.wait(deadline)
        finish(sender, receiver)


@pytest.mark.parametrize("model", TransferModel)
def test_five_thousand_rooms_share_their_connections(model: TransferModel) -> None:
    with paired(config(model)) as pair:
        serve(pair, range(IN_FLIGHT))
        before = held()
        for first in range(IN_FLIGHT, ROOMS, IN_FLIGHT):
            serve(pair, range(first, first + IN_FLIGHT))
        sockets, threads = held()
        assert sockets <= before[0]
        assert threads <= before[1]
        assert (pair.prefill.busy(), pair.decode.busy()) == (0, 0)
        assert not pair.prefill.channel.counts
        assert not pair.decode.channel.counts


def ask_again(manager: PrefillManager, room: int, generation: int, page: int) -> None:
    """Have decode's request come once more, as if it had been held up on its way."""
    (route,) = manager._peers()
    wanted = RequestMetadata(RoomId(room), Generation(generation), np.array([page]), None, (), 0, 60.0)
    done = threading.Event()
    manager.channel.call(lambda: manager.feed(Heard(route, wanted)))
    manager.channel.call(done.set)
    assert done.wait(30)


def test_a_request_that_comes_late_moves_nothing_and_is_counted() -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        sender.init(2)
        receiver.send_metadata([3, 4])
        sender.send([1])
        deadline = soon()
        while sender.poll() is not KVPoll.TRANSFERRING and not deadline.expired:
            pair.prefill.finished(Deadline.after(0.01))
        ask_again(pair.prefill, 1, receiver.record.generation, 9)
        assert pair.prefill.channel.counts["stale"] == 1
        sender.send([2])
        finish(sender, receiver)
        assert not pair.decode.pools.arrays[0][9].any()
