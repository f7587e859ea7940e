"""A prefill and a decode manager in one process, over the real local engine and real sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import attrs
import numpy as np

from pdcore import (
    AuxField,
    AuxSchema,
    BootstrapServer,
    Config,
    Deadline,
    DecodeManager,
    KVLayout,
    KVPoll,
    KVReceiver,
    KVSender,
    LivenessConfig,
    MetadataBuffers,
    Pools,
    PrefillManager,
    RoomError,
    RoomId,
    StateComponent,
    Timeouts,
    Topology,
    TransferConfig,
    TransferModel,
    select,
)
from pdcore.events import Subscriber
from pdcore.protocol.peer import RemoteRank

SCHEMA = AuxSchema((AuxField("first_token", "int64"), AuxField("logprobs", "float32", (8,))))
SLOTS = 16
MHA = KVLayout.heads(layers=range(4), kv_heads=2, head_dim=16, page_size=4, num_pages=64)
MLA = KVLayout.latent(layers=range(3), latent_dim=72, page_size=4, num_pages=64)


def soon() -> Deadline:
    """The deadline of everything that should come at once; generous, for busy machines."""
    return Deadline.after(30)


def config(
    model: TransferModel = TransferModel.WORKERS,
    aux: Literal["auto", "engine", "tcp"] = "auto",
    *,
    request: float = 60.0,
    lanes: int = 1,
    interval: float = 0.2,
    max_failures: int = 50,
) -> Config:
    """Return a configuration; heartbeats are quick and lenient."""
    return Config(
        transfer=TransferConfig(model=model, aux=aux, lanes_per_peer=lanes),
        timeouts=Timeouts(request=request, pairing=min(30.0, request), bootstrap=min(10.0, request)),
        liveness=LivenessConfig(interval=interval, max_failures=max_failures),
    )


def pools(
    layout: KVLayout = MHA, schema: AuxSchema | None = SCHEMA, state: Sequence[StateComponent] = ()
) -> Pools:
    """Return pools in host memory."""
    return Pools.allocate(layout, aux=MetadataBuffers(schema, SLOTS) if schema else None, state=state)


def fill(memory: Pools, seed: int) -> None:
    """Fill all KV and state memory with random bytes."""
    rng = np.random.default_rng(seed)
    for region in (*memory.kv, *(r for pool in memory.state for r in pool.regions)):
        assert isinstance(region.owner, np.ndarray)
        region.owner[:] = rng.integers(0, 256, region.owner.shape, np.uint8)


def same_pages(left: Pools, left_pages: Sequence[int], right: Pools, right_pages: Sequence[int]) -> bool:
    """Whether the pages hold the same bytes in every buffer."""
    return all(
        np.array_equal(a[list(left_pages)], b[list(right_pages)])
        for a, b in zip(left.arrays, right.arrays, strict=True)
    )


@attrs.define
class Pair:
    """Both sides and the service between them."""

    bootstrap: BootstrapServer
    prefill: PrefillManager
    decode: DecodeManager

    def open(self, room: int, deadline: Deadline | None = None) -> tuple[KVSender, KVReceiver]:
        """Open a room on both sides and begin to pair."""
        sender = self.prefill.sender(RoomId(room), deadline)
        receiver = self.decode.receiver(self.bootstrap.address, RoomId(room), deadline)
        receiver.init()
        return sender, receiver

    def move(self, room: int, source: Sequence[int], target: Sequence[int], aux_slot: int | None = 0) -> None:
        """Move one request and check that it arrives."""
        sender, receiver = self.open(room)
        if aux_slot is not None and self.prefill.pools.aux:
            self.prefill.pools.aux.set(aux_slot, RoomId(room), {"first_token": room})
        sender.init(len(source), aux_slot)
        try:
            receiver.send_metadata(target, aux_slot)
        except RoomError:  # a room that failed has a page yet
            self.settle()
            receiver.send_metadata(target, aux_slot)
        sender.send(source)
        finish(sender, receiver)
        assert same_pages(self.prefill.pools, source, self.decode.pools, target)

    def settle(self) -> None:
        """Wait until pages of rooms that ended may be used again, as a scheduler would."""
        until(lambda: not self.decode.unsafe().rooms)


def until(true: Callable[[], object]) -> None:
    """Wait until something is true that no call waits for."""
    deadline = soon()
    while not true():
        assert not deadline.expired
        time.sleep(0.005)


def finish(sender: KVSender, receiver: KVReceiver) -> None:
    """Wait for success on both sides, and clear the room."""
    assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
    assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
    assert sender.release_safe()
    assert receiver.release_safe()
    sender.clear()
    receiver.clear()


@contextmanager
def paired(
    cfg: Config | None = None,
    *,
    source: Pools | None = None,
    target: Pools | None = None,
    backend: str = "local",
    subscribers: Sequence[Subscriber] = (),
) -> Iterator[Pair]:
    """Start both sides; prefill's memory is random. The subscribers hear both."""
    cfg = cfg or config()
    threaded = backend == "local" and cfg.transfer.model is TransferModel.INLINE
    chosen = select(backend, {"copy_threads": 1} if threaded else {})
    memory = source or pools()
    fill(memory, 1)
    with ExitStack() as stack:
        bootstrap = stack.enter_context(BootstrapServer(auth_key=cfg.auth_key))
        prefill = stack.enter_context(
            PrefillManager(chosen, memory, Topology(), bootstrap.address, cfg, subscribers)
        )
        decode = stack.enter_context(DecodeManager(chosen, target or pools(), Topology(), cfg, subscribers))
        yield Pair(bootstrap, prefill, decode)


def peers(manager: PrefillManager | DecodeManager) -> list[RemoteRank]:
    """Return the ranks of the other side that a manager knows, paired or not."""
    return manager.driver.look(lambda machine: list(machine.peers.by_route.values()))


def early(manager: PrefillManager, room: int | None = None) -> int:
    """Return how many requests wait for a room, or for any, that prefill has yet to open."""
    return manager.driver.look(
        lambda machine: len(machine.answers.early if room is None else machine.answers.early.of(RoomId(room)))
    )
