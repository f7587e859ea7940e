from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pdcore.errors import FailureCode, KVTransferError, LayoutError, RegistrationError, RoomError, WireError
from pdcore.layout.aux_form import AUX_REGION
from pdcore.layout.aux_schema import AUX_DTYPES, AuxField, AuxSchema
from pdcore.memory.metadata_buffers import AuxDataCodec, MetadataBuffers
from pdcore.model import CPU, Device, DeviceKind, RoomId

SCHEMA = AuxSchema(
    (
        AuxField("token", "int64"),
        AuxField("logprobs", "float32", (2, 3)),
        AuxField("count", "uint8"),
        AuxField("hidden", "float16", (40,)),
        AuxField("done", "bool"),
    )
)
VALUES: dict[str, Any] = {
    "token": 151643,
    "logprobs": [[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]],
    "count": 255,
    "hidden": np.arange(40, dtype=np.float16),
    "done": True,
}
ROOM, OTHER = RoomId(2**62), RoomId(9)


SHAPE = (4, SCHEMA.row_len)
PLACES: dict[str, Callable[[], object]] = {
    "new rows": lambda: None,
    "numpy": lambda: np.full(SHAPE, 7, np.uint8),
    "torch": lambda: torch.full(SHAPE, 7, dtype=torch.uint8),
    "fields of numpy": lambda: {f.name: np.ones((4, *f.shape), f.dtype) for f in SCHEMA.fields},
    "fields of torch": lambda: {
        f.name: torch.ones((4, *f.shape), dtype=getattr(torch, f.dtype)) for f in SCHEMA.fields
    },
    "fields with gaps": lambda: {f.name: np.ones((4, 2, *f.shape), f.dtype)[:, 1] for f in SCHEMA.fields},
}
ROWS = tuple(PLACES)[:3]


@pytest.fixture(params=PLACES)
def buffers(request: pytest.FixtureRequest) -> MetadataBuffers:
    return MetadataBuffers(SCHEMA, 4, memory=PLACES[str(request.param)]())


def bytes_of(buffers: MetadataBuffers) -> list[npt.NDArray[np.uint8]]:
    """What lies in the regions, whoever holds it: a slot per row, without what lies between slots."""
    out = []
    for region, form in zip(buffers.regions, buffers.form.regions, strict=True):
        raw = np.frombuffer(ctypes.string_at(region.address, region.length), np.uint8)
        out.append(np.stack([raw[n * form.stride :][: form.item_len] for n in range(buffers.slots)]))
    return out


def all_rows(buffers: MetadataBuffers) -> npt.NDArray[np.uint8]:
    """What lies in the slots of all regions, side by side."""
    return np.concatenate(bytes_of(buffers), axis=1)


def same(got: dict[str, Any], expected: dict[str, Any]) -> bool:
    return list(got) == list(expected) and all(np.array_equal(got[k], expected[k]) for k in expected)


def test_what_was_set_is_got_with_dtype_and_shape(buffers: MetadataBuffers) -> None:
    buffers.set(2, ROOM, VALUES)
    got = buffers.get(2, ROOM)
    assert same(got, VALUES)
    assert [(v.dtype.name, v.shape) for v in got.values()] == [(f.dtype, f.shape) for f in SCHEMA.fields]


def test_what_was_got_is_a_copy(buffers: MetadataBuffers) -> None:
    buffers.set(0, ROOM, VALUES)
    got = buffers.get(0, ROOM)
    buffers.set(0, OTHER, {"hidden": np.zeros(40, np.float16), "token": 1})
    assert same(got, VALUES)


@pytest.mark.parametrize("buffers", ROWS, indirect=True)
def test_fields_of_rows_lie_where_the_schema_says(buffers: MetadataBuffers) -> None:
    buffers.set(1, ROOM, VALUES)
    row, offsets = all_rows(buffers)[1].tobytes(), SCHEMA.offsets()
    assert len(row) == SCHEMA.row_len
    assert row[:8] == int(ROOM).to_bytes(8, "little")
    for field in SCHEMA.fields:
        raw = np.asarray(VALUES[field.name], field.dtype).tobytes()
        assert row[offsets[field.name] :][: field.nbytes] == raw


@pytest.mark.parametrize("buffers", ROWS, indirect=True)
def test_the_region_is_all_rows(buffers: MetadataBuffers) -> None:
    (region,) = buffers.regions
    assert (region.name, region.length) == (AUX_REGION, 4 * SCHEMA.row_len)
    assert region.device == buffers.device == CPU


def test_a_slot_touches_no_other(buffers: MetadataBuffers) -> None:
    before = all_rows(buffers)
    buffers.set(1, ROOM, VALUES)
    assert np.array_equal(all_rows(buffers)[[0, 2, 3]], before[[0, 2, 3]])


def test_fields_that_are_not_named_keep_what_this_room_set(buffers: MetadataBuffers) -> None:
    buffers.set(1, ROOM, VALUES)
    buffers.set(1, ROOM, {"token": 7})
    assert same(buffers.get(1, ROOM), VALUES | {"token": 7})


def test_nothing_of_another_room_stays_in_a_slot(buffers: MetadataBuffers) -> None:
    buffers.set(1, OTHER, VALUES)
    buffers.set(1, ROOM, {"count": 7})
    got = buffers.get(1, ROOM)
    assert got.pop("count") == 7
    assert not any(np.any(value) for value in got.values())


def test_a_set_is_all_or_nothing(buffers: MetadataBuffers) -> None:
    buffers.set(1, ROOM, VALUES)
    with pytest.raises(RoomError):
        buffers.set(1, ROOM, {"token": 8, "count": 256})
    assert same(buffers.get(1, ROOM), VALUES)


def test_an_empty_slot_holds_nobodys_data(buffers: MetadataBuffers) -> None:
    with pytest.raises(KVTransferError) as caught:
        buffers.get(3, ROOM)
    assert caught.value.code is FailureCode.AUX
    assert caught.value.happened == f"aux slot 3 does not hold the data of room {ROOM}"
    assert caught.value.there_is == "it holds nobody's data"
    assert "don't share slots" in caught.value.to_do


def test_a_reused_slot_is_noticed(buffers: MetadataBuffers) -> None:
    buffers.set(0, ROOM, VALUES)
    buffers.set(0, OTHER, VALUES)
    with pytest.raises(KVTransferError) as caught:
        buffers.get(0, ROOM)
    assert caught.value.there_is == "it holds the data of room 9"
    assert same(buffers.get(0, OTHER), VALUES)


def test_a_slot_that_was_emptied_holds_nobodys_data(buffers: MetadataBuffers) -> None:
    buffers.set(0, ROOM, VALUES)
    buffers.empty(0)
    with pytest.raises(KVTransferError, match="nobody's data"):
        buffers.check_room(0, ROOM)


@pytest.mark.parametrize("slot", [-1, 4])
def test_a_slot_that_does_not_exist_is_refused(buffers: MetadataBuffers, slot: int) -> None:
    for use in (
        lambda: buffers.set(slot, ROOM, {}),
        lambda: buffers.get(slot, ROOM),
        lambda: buffers.empty(slot),
    ):
        with pytest.raises(RoomError) as caught:
            use()
        assert caught.value.happened == f"aux slot {slot} does not exist"
        assert caught.value.there_is == "slots 0 to 3"


@pytest.mark.parametrize("slots", [0, -1])
def test_buffers_have_at_least_one_slot(slots: int) -> None:
    with pytest.raises(LayoutError, match="there are no aux slots") as caught:
        MetadataBuffers(SCHEMA, slots)
    assert caught.value.there_is == f"slots={slots}"


def test_an_unknown_field_is_refused_with_those_there_are(buffers: MetadataBuffers) -> None:
    with pytest.raises(RoomError) as caught:
        buffers.set(0, ROOM, {"tokens": 1})
    assert caught.value.happened == "there is no aux field 'tokens'"
    assert caught.value.there_is == "fields: token, logprobs, count, hidden, done"
    with pytest.raises(RoomError) as caught:
        MetadataBuffers(AuxSchema(), 1).set(0, ROOM, {"token": 1})
    assert caught.value.there_is == "fields: none"


@pytest.mark.parametrize(
    ("field", "value", "there_is"),
    [
        ("token", [1], "int64(1,), the field is int64()"),
        ("logprobs", np.zeros((3, 2), np.float32), "float32(3, 2), the field is float32(2, 3)"),
        ("logprobs", 1.0, "float64(), the field is float32(2, 3)"),
        ("token", 1.5, "float64(), the field is int64()"),
        ("count", 256, "int64(), the field is uint8()"),
        ("count", -1, "int64(), the field is uint8()"),
        ("token", np.uint64(2**63), "uint64(), the field is int64()"),
        ("done", 1, "int64(), the field is bool()"),
        ("token", "7", "<U1(), the field is int64()"),
        ("token", None, "object(), the field is int64()"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_the_slot_keeps_its_room(
    buffers: MetadataBuffers, field: str, value: Any, there_is: str
) -> None:
    buffers.set(0, OTHER, VALUES)
    with pytest.raises(RoomError) as caught:
        buffers.set(0, ROOM, {field: value})
    assert caught.value.happened == f"a value does not fit the aux field {field!r}"
    assert caught.value.there_is == there_is
    assert caught.value.to_do == "hand in a value of the field's shape, kind and range"
    assert same(buffers.get(0, OTHER), VALUES)


@pytest.mark.parametrize("dtype", AUX_DTYPES)
def test_every_dtype_can_be_set_and_got(dtype: str) -> None:
    buffers = MetadataBuffers(AuxSchema((AuxField("x", dtype, (3,)),)), 2)
    value = np.array([0, 1, 1], dtype)
    buffers.set(1, ROOM, {"x": value})
    assert np.array_equal(buffers.get(1, ROOM)["x"], value)


# Rows as bytes


def test_a_row_travels_as_bytes_into_another_slot(buffers: MetadataBuffers) -> None:
    buffers.set(1, ROOM, VALUES)
    there = MetadataBuffers(SCHEMA, 2)
    there.empty(0)
    AuxDataCodec(there).decode(0, AuxDataCodec(buffers).encode(1))
    assert same(there.get(0, ROOM), VALUES)


def test_encoded_rows_do_not_follow_the_slot(buffers: MetadataBuffers) -> None:
    buffers.set(1, ROOM, VALUES)
    row = AuxDataCodec(buffers).encode(1)
    buffers.empty(1)
    AuxDataCodec(buffers).decode(1, row)
    assert same(buffers.get(1, ROOM), VALUES)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_row_of_another_length_is_refused_and_changes_nothing(
    buffers: MetadataBuffers, change: int
) -> None:
    buffers.set(0, ROOM, VALUES)
    with pytest.raises(WireError) as caught:
        AuxDataCodec(buffers).decode(0, bytes(SCHEMA.row_len + change))
    assert caught.value.there_is == f"{SCHEMA.row_len + change} bytes, the schema has {SCHEMA.row_len}"
    assert caught.value.to_do == "use the same AuxSchema on both sides"
    assert same(buffers.get(0, ROOM), VALUES)


# Where the rows lie


def test_the_callers_memory_holds_the_rows() -> None:
    memory = torch.zeros(SHAPE, dtype=torch.uint8)
    buffers = MetadataBuffers(SCHEMA, 4, memory=memory)
    assert buffers.regions[0].address == memory.data_ptr()
    buffers.set(2, ROOM, VALUES)
    assert memory[2].numpy()[:8].view(np.int64)[0] == ROOM
    assert not np.any(memory[1].numpy()[8:])


@pytest.mark.parametrize(
    ("memory", "there_is"),
    [
        (np.zeros((4, 64), np.uint8), "a ndarray of shape (4, 64), uint8"),
        (np.zeros(SHAPE, np.int8), f"a ndarray of shape {SHAPE}, int8"),
        (torch.zeros(SHAPE, dtype=torch.int64), f"a Tensor of shape {SHAPE}, torch.int64"),
        (bytearray(8), "a bytearray of shape (), without a dtype"),
    ],
)
def test_memory_that_cannot_hold_the_rows_is_refused(memory: object, there_is: str) -> None:
    with pytest.raises(LayoutError, match="cannot hold the aux rows") as caught:
        MetadataBuffers(SCHEMA, 4, memory=memory)
    assert caught.value.there_is == there_is
    assert caught.value.to_do == f"hand in a uint8 numpy array or torch tensor of shape {SHAPE}"


def test_memory_that_is_not_contiguous_is_refused() -> None:
    with pytest.raises(RegistrationError, match="contiguous"):
        MetadataBuffers(SCHEMA, 4, memory=np.zeros((4, 2 * SCHEMA.row_len), np.uint8)[:, ::2])


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(LayoutError, match="cannot lie on cuda:7") as caught:
        MetadataBuffers(SCHEMA, 4, device=Device(DeviceKind.CUDA, 7))
    assert caught.value.to_do == "install torch for that device, or keep them in host memory"


def test_the_standard_schema_has_what_engines_hand_over() -> None:
    assert [f.name for f in AuxSchema.standard().fields] == [
        "output_ids",
        "cached_tokens",
        "output_token_logprobs_val",
        "output_token_logprobs_idx",
    ]
    schema = AuxSchema.standard(
        tokens=2, top_logprobs=5, speculative_top_k=3, hidden_size=7, hidden_dtype="uint16"
    )
    shapes = {f.name: (f.dtype, f.shape) for f in schema.fields}
    assert shapes["output_top_logprobs_idx"] == ("int32", (2, 5))
    assert shapes["output_topk_index"] == ("int64", (2, 3))
    assert shapes["output_hidden_states"] == ("uint16", (7,))
    assert all(offset % 64 == 0 for offset in schema.offsets().values())
    buffers = MetadataBuffers(schema, 1)
    buffers.set(0, ROOM, {"output_ids": [5, 6], "output_topk_p": np.ones((2, 3), np.float32)})
    got = buffers.get(0, ROOM)
    assert got["output_ids"].tolist() == [5, 6]
    assert got["output_topk_p"].sum() == 6
