"""The observer of the engines' tests tells of every room; its control sends other pages, the same aux."""

from __future__ import annotations

import json
from pathlib import Path

from distributions import run_python
from serving.engines import WATCH

ROOM = """
import numpy as np, pathlib, sys
import pdcore
from pdcore import AuxField, AuxSchema, Deadline, KVLayout, KVPoll, MetadataBuffers, Pools, RoomId, Topology

layout = KVLayout.heads(layers=range(2), kv_heads=2, head_dim=8, page_size=4, num_pages=16)
schema = AuxSchema((AuxField("first_token", "int64"),))
source, target = (Pools.allocate(layout, aux=MetadataBuffers(schema, slots=4)) for _ in range(2))
for buffer in source.arrays:
    buffer[:] = np.random.default_rng(0).integers(0, 256, buffer.shape, np.uint8)
backend = pdcore.select("local")
with (
    pdcore.BootstrapServer() as bootstrap,
    pdcore.PrefillManager(backend, source, Topology(), bootstrap.address) as prefill,
    pdcore.DecodeManager(backend, target, Topology()) as decode,
):
    control = pathlib.Path(sys.argv[1])
    for number, on in enumerate((False, True, False)):
        control.touch() if on else control.unlink(missing_ok=True)
        room, deadline = RoomId(7 + number), Deadline.after(30)
        receiver = decode.receiver(bootstrap.address, room, deadline)
        receiver.init()
        receiver.send_metadata([4, 5], aux_index=0)
        sender = prefill.sender(room, deadline)
        sender.init(num_pages=2, aux_index=2)
        source.aux.set(2, room, {"first_token": 1234})
        sender.send([1, 2])
        assert receiver.wait(deadline) is KVPoll.SUCCESS, receiver.failure()
        same = all((b[[4, 5]] == a[[1, 2]]).all() for a, b in zip(source.arrays, target.arrays))
        print(same, target.aux.get(0, room)["first_token"])
        sender.wait(deadline)
        sender.clear()
        receiver.clear()
"""


def test_the_control_changes_pages_and_every_room_is_told(tmp_path: Path) -> None:
    control, rooms = tmp_path / "control", tmp_path / "rooms"
    environ = {"SERVING_CORRUPT": str(control), "SERVING_ROOMS": str(rooms)}
    done = run_python("-c", ROOM, str(control), path=[str(WATCH)], environ=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 1234", "False 1234", "True 1234"]
    told = [json.loads(line) for line in rooms.read_text().splitlines()]
    assert sorted((t["role"], t["room"], t["status"]) for t in told) == [
        (role, room, "SUCCESS") for role in ("decode", "prefill") for room in (7, 8, 9)
    ]
    assert all(t["pages"] == 2 and t["nbytes"] > 0 and t["failure"] is None for t in told)
