"""Bytes that go packed, through slots: between real managers, over the real local engine."""

from __future__ import annotations

import threading
from typing import Literal

import attrs
import numpy as np
import pytest
from pair import MHA, Pair, config, fill, finish, paired, pools, same_pages, soon, until

from pdcore import (
    Config,
    DecodeManager,
    KVPoll,
    Pools,
    RoomId,
    StateBuffer,
    StateComponent,
    Topology,
    TransferConfig,
    select,
)
from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Transfer
from pdcore.contract.regions import WriteBatch
from pdcore.events import ChunkLanded, Event
from pdcore.memory import staging
from pdcore.testing.faults.replay import replay
from pdcore.testing.faults.schedule import Fault

MAMBA = StateComponent("mamba", 8, (StateBuffer("conv", 96), StateBuffer("ssm", 1000)))


@pytest.fixture(autouse=True)
def _small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have requests go in many pieces, and slots be used again."""
    monkeypatch.setattr(staging, "SLOT_BYTES", 4096)
    monkeypatch.setattr(staging, "SLOTS", 3)


def packed(rings: int = 8, verify: Literal["off", "all"] = "off") -> Config:
    """Return a configuration under which everything goes packed."""
    transfer = TransferConfig(staging="always", staging_rings=rings, verify=verify)
    return attrs.evolve(config(), transfer=transfer)


def test_a_request_arrives_through_many_slots_with_its_state_and_aux_row() -> None:
    heard: list[Event] = []
    here, there = pools(state=[MAMBA]), pools(state=[MAMBA])
    with paired(packed(), source=here, target=there, subscribers=[heard.append]) as pair:
        sender, receiver = pair.open(1)
        assert here.aux is not None
        assert there.aux is not None
        here.aux.set(2, RoomId(1), {"first_token": 7})
        sender.init(40, 2)
        target = np.random.default_rng(0).permutation(64)[:40]
        receiver.send_metadata(target, 5, [[3]])
        sender.send(range(10, 23))
        sender.send(range(23, 50), [[6]])
        slots = sender.wait(soon()), sender.metric().slots
        finish(sender, receiver)
        assert slots[1] > 10
        assert receiver.metric().slots == slots[1]
        assert sum(e.slots for e in heard if isinstance(e, ChunkLanded)) == slots[1]
        assert same_pages(here, range(10, 50), there, target.tolist())
        assert there.aux.get(5, RoomId(1))["first_token"] == 7
        for region_here, region_there in zip(here.state[0].regions, there.state[0].regions, strict=True):
            assert isinstance(region_here.owner, np.ndarray)
            assert isinstance(region_there.owner, np.ndarray)
            assert np.array_equal(region_here.owner[6], region_there.owner[3])


def test_no_other_page_is_written() -> None:
    there = pools()
    fill(there, 9)
    before = [array.copy() for array in there.arrays]
    with paired(packed(), target=there) as pair:
        pair.move(1, range(20), range(30, 50))
    others = [page for page in range(64) if not 30 <= page < 50]
    assert all(np.array_equal(a[others], b[others]) for a, b in zip(there.arrays, before, strict=True))


def test_what_came_packed_is_verified_where_it_belongs() -> None:
    with paired(packed(verify="all")) as pair:
        pair.move(1, range(20), range(30, 50))


def test_auto_packs_nothing_for_an_engine_whose_entries_cost_nothing() -> None:
    with paired() as pair:
        sender, receiver = pair.open(1)
        assert pair.prefill.pools.aux is not None
        pair.prefill.pools.aux.set(0, RoomId(1), {"first_token": 7})
        sender.init(4, 0)
        receiver.send_metadata(range(4), 0)
        sender.send(range(4))
        finish(sender, receiver)
        assert sender.metric().slots == 0


class Held:
    """The writes of prefill's engine, which do not return before they are let go."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        engine = pair.prefill.engine
        write = engine.do_write

        def held(peer: Peer, batch: WriteBatch) -> Transfer:
            self.entered.set()
            self.go_on.wait(30)
            return write(peer, batch)

        monkeypatch.setattr(engine, "do_write", held)


@pytest.mark.parametrize("who", ["prefill", "decode"])
def test_pages_are_safe_at_once_while_the_engine_hangs_in_a_write(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: Pools = pools()
    with paired(packed(), target=there) as pair:
        # Lanes write, as for an engine that is neither prompt nor asynchronous.
        engine = pair.prefill.engine
        engine.capabilities = attrs.evolve(engine.capabilities, prompt=False, asynchronous=False)
        pair.move(1, range(4), range(4))
        held = Held(pair, monkeypatch)
        try:
            sender, receiver = pair.open(2)
            assert pair.prefill.pools.aux is not None
            pair.prefill.pools.aux.set(0, RoomId(2), {"first_token": 7})
            sender.init(60, 0)
            receiver.send_metadata(range(60), 0)
            sender.send(range(60))
            assert held.entered.wait(30)
            (sender if who == "prefill" else receiver).abort()
            assert sender.wait(soon()) is KVPoll.FAILED
            assert receiver.wait(soon()) is KVPoll.FAILED
            until(sender.release_safe)
            until(receiver.release_safe)
            assert not held.go_on.is_set()
            fill(there, 5)
            before = [array.copy() for array in there.arrays]
        finally:
            held.go_on.set()
        until(lambda: not pair.prefill.quarantine)
        assert all(np.array_equal(a, b) for a, b in zip(there.arrays, before, strict=True))
        sender.clear()
        receiver.clear()
        pair.move(3, range(30), range(10, 40))


def test_a_worker_for_which_no_ring_is_left_is_told_why_at_once() -> None:
    with paired(packed(rings=1)) as pair:
        pair.move(1, range(4), range(4))
        with DecodeManager(select("local"), pools(MHA), Topology(), packed(rings=1)) as second:
            receiver = second.receiver(pair.bootstrap.address, RoomId(5))
            receiver.init()
            receiver.send_metadata(range(4), 0)
            assert receiver.wait(soon()) is KVPoll.FAILED
            failure = receiver.failure()
            assert failure is not None
            assert "no staging ring is left for decode" in failure.happened
            assert failure.to_do == (
                "raise transfer.staging_rings on prefill, or start more workers of that side"
            )
            receiver.clear()
        pair.move(6, range(4), range(4))


@pytest.mark.parametrize("seed", range(200, 206))
def test_random_operations_under_random_faults_keep_the_invariants(seed: int) -> None:
    run = replay(seed, 120, 0.2, [f for f in Fault if f not in (Fault.NONE, Fault.RAISE)], packed=True)
    assert not run.broken, "\n".join((*run.operations, *run.faults, run.broken))
