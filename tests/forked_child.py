"""Forks with both managers, a bootstrap service and engines at work, and every lock of pdcore in the hands of
a thread that the child does not have. The child closes and calls everything; then the parent goes on.

Prints what happened, a line each; run as ``python forked_child.py BACKEND``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pair import Pair, config, finish, paired, soon

from pdcore import BootstrapServer, Deadline, KVPoll, PDCoreError, RoomId
from pdcore.prefill.lanes.lane import Lane

LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition)


@contextlib.contextmanager
def every_lock_held() -> Iterator[int]:
    """Have another thread hold the locks of all objects of pdcore that it can get."""
    owners = [o for o in gc.get_objects() if str(type(o).__module__).startswith(("pdcore.", "pd_"))]
    locks = [
        value
        for owner in owners
        for name in [*getattr(owner, "__dict__", {}), *getattr(type(owner), "__slots__", ())]
        if isinstance(value := getattr(owner, name, None), LOCKS)
    ]
    held: list[Any] = []
    ready, over = threading.Event(), threading.Event()

    def hold() -> None:
        held.extend(lock for lock in locks if lock.acquire(timeout=0.05))
        ready.set()
        over.wait(60)
        for lock in held:
            lock.release()

    holder = threading.Thread(target=hold)
    holder.start()
    ready.wait(60)
    try:
        yield len(held)
    finally:
        over.set()
        holder.join(60)


def tell(*words: object) -> None:
    # Whole at once: engines write there as well, and parent and child at the same time.
    os.write(sys.stdout.fileno(), (" ".join(map(str, (">", *words))) + "\n").encode())


def outcome(call: Callable[[], object]) -> str:
    try:
        value = call()
    except PDCoreError as error:
        return type(error).__name__
    return "nothing" if value is None else repr(value)


def in_child(pair: Pair, sender: Any, receiver: Any, lane: Lane) -> None:
    """Call everything: what ends things does nothing, the rest is refused at once."""
    faulthandler.dump_traceback_later(20, exit=True)  # a hang
    prefill, decode = pair.prefill, pair.decode
    refused: dict[str, Callable[[], object]] = {
        "sender": lambda: prefill.sender(RoomId(50)),
        "receiver": lambda: decode.receiver(pair.bootstrap.address, RoomId(50)),
        "register_dp_rank": lambda: prefill.register_dp_rank(RoomId(50)),
        "prefill.finished": lambda: prefill.finished(Deadline.after(10)),
        "decode.finished": lambda: decode.finished(Deadline.after(10)),
        "prefill.history": lambda: prefill.history(RoomId(1)),
        "decode.record": lambda: decode.record("never"),
        "subscribe": lambda: decode.subscribe(print),
        "unsafe": prefill.unsafe,
        "snapshot": decode.snapshot,
        "sender.init": lambda: sender.init(1),
        "sender.send": lambda: sender.send([1]),
        "sender.poll": sender.poll,
        "sender.wait": lambda: sender.wait(Deadline.after(10)),
        "sender.abort": sender.abort,
        "sender.clear": sender.clear,
        "sender.release_safe": sender.release_safe,
        "receiver.init": receiver.init,
        "receiver.send_metadata": lambda: receiver.send_metadata([1]),
        "receiver.poll": receiver.poll,
        "receiver.wait": lambda: receiver.wait(Deadline.after(10)),
        "receiver.abort": receiver.abort,
        "receiver.clear": receiver.clear,
        "receiver.release_safe": receiver.release_safe,
        "bootstrap.start": pair.bootstrap.start,
        "channel.call": lambda: decode.channel.call(print),
        "lane.put": lambda: lane.put(print),
        "client.resolve": lambda: prefill._registration._client.register_rooms("127.0.0.1:1", None, 1.0),  # type: ignore[arg-type]
        "engine.register": lambda: prefill.engine.register(prefill.pools.regions),
    }
    for name, call in refused.items():
        tell(name, outcome(call))
    soon_over = Deadline.after(10)
    for name, call in {
        "close prefill": prefill.close,
        "close decode": decode.close,
        "close bootstrap": pair.bootstrap.close,
        "close engine": prefill.engine.close,
        "close engine 2": decode.engine.close,
        "deregister": decode.engine.deregister,
        "close channel": lambda: prefill.channel.close(soon_over),
        "close client": lambda: prefill._registration._client.close(soon_over),
        "close lane": lane.close,
        "close loop": lambda: prefill._registration._client._loop.close(soon_over),
    }.items():
        tell(name, outcome(call))
    with BootstrapServer() as own:  # what a child makes itself is its own
        tell("own bootstrap", bool(own.address))


def main(backend: str) -> int:
    cfg = config()
    child = 0
    lane = Lane("of-the-test")
    with paired(cfg, backend=backend) as pair:
        pair.move(1, [1], [1])
        sender, receiver = pair.open(2)
        sender.init(2)
        receiver.send_metadata([5, 6])
        sender.send([5])
        with every_lock_held() as held:
            child = os.fork()
            if child == 0:
                in_child(pair, sender, receiver, lane)
                return 0  # through every with, and the interpreter's own end
        tell("held", held > 20)
        _, status = os.waitpid(child, 0)
        tell("child", os.waitstatus_to_exitcode(status))
        sender.send([6])
        finish(sender, receiver)
        pair.move(3, [7], [8])
        assert sender.poll() is KVPoll.SUCCESS
    lane.close()
    tell("lane ended", lane.join(soon()))
    tell("parent went on")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
