"""Aux data in memory of the caller's own: one region per field, paired with rows or fields elsewhere."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pair import MHA, config, finish, paired, soon

from pdcore import AuxField, AuxSchema, FailureCode, KVPoll, KVTransferError, MetadataBuffers, Pools, RoomId
from pdcore.errors import LayoutError, PlanError, RegistrationError, RoomError
from pdcore.layout.aux_form import AuxCell, AuxForm, AuxRegion, runs_between
from pdcore.memory.aux_rows import _tensor_of_bytes, _TensorRows
from pdcore.model import CPU
from pdcore.plan import AuxCopier

SLOTS = 8
ROOM, OTHER = RoomId(2**62), RoomId(9)


def like_sglang(slots: int = SLOTS) -> dict[str, torch.Tensor]:
    """The tensors of SGLang's MetadataBuffers: their names, dtypes and shapes."""
    shapes: dict[str, tuple[torch.dtype, int]] = {
        "output_ids": (torch.int32, 16),
        "cached_tokens": (torch.int32, 16),
        "output_token_logprobs_val": (torch.float32, 16),
        "output_token_logprobs_idx": (torch.int32, 16),
        "output_top_logprobs_val": (torch.float32, 128),
        "output_top_logprobs_idx": (torch.int32, 128),
        "output_topk_p": (torch.float32, 16),
        "output_topk_index": (torch.int64, 16),
        "output_hidden_states": (torch.bfloat16, 24),
        "bootstrap_room": (torch.uint64, 8),
    }
    return {name: torch.zeros((slots, size), dtype=dtype) for name, (dtype, size) in shapes.items()}


def test_the_callers_tensors_are_the_regions_and_make_the_schema() -> None:
    tensors = like_sglang()
    buffers = MetadataBuffers.of_fields(tensors)
    assert buffers.slots == SLOTS
    assert buffers.device == CPU
    assert [f.name for f in buffers.schema.fields] == list(tensors)
    described = {f.name: (f.dtype, f.shape) for f in buffers.schema.fields}
    assert described["output_top_logprobs_val"] == ("float32", (128,))
    assert described["output_hidden_states"] == ("uint16", (24,))  # numpy has no bfloat16
    assert described["bootstrap_room"] == ("uint64", (8,))
    rooms, *fields = buffers.regions
    assert (rooms.name, rooms.length) == ("aux", SLOTS * 64)
    assert [r.name for r in fields] == [f"aux.{name}" for name in tensors]
    assert [(r.address, r.length) for r in fields] == [(t.data_ptr(), t.nbytes) for t in tensors.values()]


def test_what_the_caller_wrote_itself_is_got_and_what_is_set_is_in_its_tensors() -> None:
    tensors = like_sglang()
    buffers = MetadataBuffers.of_fields(tensors)
    tensors["output_ids"][3, 0] = 151643
    tensors["output_hidden_states"][3] = 0.5
    with pytest.raises(KVTransferError, match="nobody's data"):
        buffers.get(3, ROOM)
    buffers.give(3, ROOM)
    got = buffers.get(3, ROOM)
    assert got["output_ids"][0] == 151643
    assert torch.equal(
        torch.from_numpy(got["output_hidden_states"]).view(torch.bfloat16), tensors["output_hidden_states"][3]
    )
    buffers.set(3, ROOM, {"output_topk_index": np.arange(16)})
    assert tensors["output_topk_index"][3].tolist() == list(range(16))
    assert tensors["output_ids"][3, 0] == 151643
    buffers.set(3, OTHER, {})  # nothing of another room stays
    assert not any(tensor[3].any() for tensor in tensors.values())
    assert buffers.get(3, OTHER)["output_ids"][0] == 0


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_that_does_not_exist_cannot_be_given(slot: int) -> None:
    with pytest.raises(RoomError, match=f"aux slot {slot} does not exist"):
        MetadataBuffers.of_fields(like_sglang()).give(slot, ROOM)


def test_rows_can_be_given_too() -> None:
    memory = np.full((2, 128), 7, np.uint8)
    buffers = MetadataBuffers(AuxSchema((AuxField("x", "uint8", (64,)),)), 2, memory=memory)
    buffers.give(1, ROOM)
    assert buffers.get(1, ROOM)["x"].tolist() == [7] * 64


def test_memory_on_a_device_is_read_and_written_as_bytes_wherever_its_slots_lie() -> None:
    memory = torch.arange(24, dtype=torch.int16).reshape(4, 6)
    for tensor, item_len in ((memory, 12), (memory[:, 2:4], 4), (memory[:, 5], 2)):
        rows = _TensorRows(_tensor_of_bytes(tensor, 4, item_len, tensor.stride(0) * 2))
        assert rows.read(1).tobytes() == tensor[1].numpy().tobytes()
        rows.write(2, np.full(item_len - 1, 255, np.uint8), 1)
        assert rows.read(2, 1).tolist() == [255] * (item_len - 1)
    assert memory[0].tolist() == list(range(6))


NO_TENSOR = "hand in one writable array or tensor per field, of shape (slots, *the field's shape)"


@pytest.mark.parametrize(
    ("fields", "happened", "there_is"),
    [
        ({}, "aux fields need as many slots each", "no fields"),
        (
            {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))},
            "aux fields need as many slots each",
            "a: 2, b: 3",
        ),
        ([np.zeros((2, 1))], "the aux fields are no mapping of names to memory", "list [array([[0.],"),
        ({7: np.zeros((2, 1))}, "the aux fields are no mapping of names to memory", "dict {7: array([[0.],"),
        (
            {"a": np.zeros(2, ">i4")},
            "this memory cannot hold the aux field 'a'",
            "shape (2,), dtype >i4",
        ),
        ({"a": np.array(1.0)}, "this memory cannot hold the aux field 'a'", "shape (), dtype float64"),
        ({"a": np.zeros((2, 1), "S3")}, "the aux field 'a' cannot lie in memory", "dtype 'uint24'"),
    ],
)
def test_memory_that_can_be_no_fields_is_refused(fields: Any, happened: str, there_is: str) -> None:
    with pytest.raises(LayoutError) as caught:
        MetadataBuffers.of_fields(fields)
    assert caught.value.happened == happened
    assert caught.value.there_is.startswith(there_is)
    if "need" in happened or "hold" in happened:
        assert caught.value.to_do == NO_TENSOR


@pytest.mark.parametrize("memory", [np.zeros((2, 4), np.int32)[:, ::2], [1, 2], np.zeros((2, 0))])
def test_memory_that_cannot_be_registered_names_its_field(memory: object) -> None:
    with pytest.raises(RegistrationError, match=r"region 'aux\.ids' cannot be made of this memory"):
        MetadataBuffers.of_fields({"ids": memory})


SCHEMA = AuxSchema((AuxField("token", "int64"), AuxField("p", "float32", (8,)), AuxField("n", "uint8")))


def test_memory_for_a_schema_must_be_its_fields() -> None:
    fields = {"token": np.zeros(2, np.int32), "p": np.zeros((3, 8), np.float32), "more": np.zeros(2)}
    with pytest.raises(LayoutError) as caught:
        MetadataBuffers(SCHEMA, 2, memory=fields)
    assert caught.value.happened == "this memory cannot hold the aux fields"
    assert caught.value.there_is == (
        "n is missing, more is no field, token is int32(2,) instead of int64(2,), "
        "p is float32(3, 8) instead of float32(2, 8)"
    )
    assert caught.value.to_do == NO_TENSOR


def test_fields_on_different_devices_are_refused() -> None:
    class Elsewhere:
        """A tensor on a device, as far as a region looks."""

        device, dtype, shape = torch.device("cuda:1"), torch.float32, (2, 1)

        def data_ptr(self) -> int:
            return 4096

        def numel(self) -> int:
            return 2

        def element_size(self) -> int:
            return 4

        def stride(self) -> tuple[int, ...]:
            return 1, 1

    with pytest.raises(LayoutError) as caught:
        MetadataBuffers.of_fields({"a": np.zeros((2, 1)), "b": Elsewhere()})
    assert caught.value.happened == "the aux fields lie on different devices"
    assert caught.value.there_is == "a on cpu, b on cuda:1"


# Where data lies on both sides, and what is copied between


def arrays_of(schema: AuxSchema, slots: int, gap: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Memory of fields, with so many values between the slots."""
    memory = {f.name: np.zeros((slots, gap + 1, *f.shape), f.dtype) for f in schema.fields}
    return {name: array[:, gap] for name, array in memory.items()}


def made(schema: AuxSchema, slots: int, gap: int | None) -> MetadataBuffers:
    """Buffers of rows (None), or of fields with a gap between slots."""
    return MetadataBuffers(schema, slots, memory=None if gap is None else arrays_of(schema, slots, gap))


def test_rows_are_copied_by_one_entry_and_fields_by_one_each() -> None:
    rows, apart = AuxForm.rows(SCHEMA), AuxForm.apart(SCHEMA, {})
    assert [run.length for run in runs_between(rows, rows)] == [SCHEMA.row_len]
    for ours, theirs in ((rows, apart), (apart, rows), (apart, apart)):
        assert [run.length for run in runs_between(ours, theirs)] == [64, 8, 32, 1]


FIELD = st.builds(
    lambda dtype, shape: (dtype, tuple(shape)),
    st.sampled_from(["int64", "float32", "uint8", "float16"]),
    st.lists(st.integers(1, 40), max_size=2),
)
PLACE = st.sampled_from([None, 0, 2])


@settings(max_examples=40, deadline=None)
@given(st.lists(FIELD, min_size=1, max_size=5), PLACE, PLACE, st.integers(0, 2), st.integers(0, 4))
def test_any_two_forms_of_a_schema_exchange_slots(
    fields: list[tuple[str, tuple[int, ...]]], here: int | None, there: int | None, slot: int, other: int
) -> None:
    schema = AuxSchema(tuple(AuxField(f"f{n}", *field) for n, field in enumerate(fields)))
    local, remote = made(schema, 3, here), made(schema, 5, there)
    rng = np.random.default_rng(0)
    values = {f.name: rng.integers(0, 100, f.shape).astype(f.dtype) for f in schema.fields}
    local.set(slot, ROOM, values)
    batch = AuxCopier((local.form, remote.form), range(len(local.regions)), range(len(remote.regions)), 3, 5)(
        np.array([slot]), np.array([other])
    )
    lengths = (np.array([r.length for r in side.regions], np.uint64) for side in (local, remote))
    batch.prove_inside(*lengths)
    sides = [np.array([r.address for r in side.regions], np.uint64) for side in (local, remote)]
    for source, target, length in zip(*batch.absolute(*sides), strict=True):
        np.copyto(_at(int(target), int(length)), _at(int(source), int(length)))
    got = remote.get(other, ROOM)
    assert all(np.array_equal(got[name], value) for name, value in values.items())
    for n in set(range(5)) - {other}:
        with pytest.raises(KVTransferError):
            remote.check_room(n, ROOM)


def _at(address: int, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(address))


def test_a_slot_outside_is_refused_before_anything_is_planned() -> None:
    copier = AuxCopier((AuxForm.rows(SCHEMA),) * 2, [0], [0], 2, 3)
    with pytest.raises(PlanError, match="aux slot indices leave the remote pool"):
        copier(np.array([1]), np.array([3]))
    assert len(copier(np.array([], np.int64), np.array([], np.int64))) == 0


@pytest.mark.parametrize(
    ("regions", "cells"),
    [
        ([("aux", 0, 0)], []),
        ([("aux", 64, 63)], []),
        ([("aux", 64, 0)], [(1, 0, 8)]),
        ([("aux", 64, 0)], [(0, 0, 0)]),
        ([("aux", 64, 0)], [(0, 60, 8)]),
    ],
)
def test_a_form_that_contradicts_itself_is_refused(regions: Any, cells: Any) -> None:
    with pytest.raises(LayoutError, match="the form of aux data contradicts itself"):
        AuxForm(tuple(AuxRegion(*r) for r in regions), tuple(AuxCell(*c) for c in cells))


def test_a_form_says_how_it_differs_from_a_schema() -> None:
    assert AuxForm.rows(SCHEMA).misfit(SCHEMA) == AuxForm.apart(SCHEMA, {}).misfit(SCHEMA) == ""
    assert AuxForm.rows(AuxSchema()).misfit(SCHEMA) == "1 cells for the room and 3 fields"
    larger = AuxSchema((*SCHEMA.fields[:2], AuxField("n", "uint8", (65,))))
    assert AuxForm.apart(SCHEMA, {}).misfit(larger) == "too few bytes for 'n'"


# Over real managers


Form = Literal["rows", "fields", "fields with gaps"]
GAPS: Mapping[str, int | None] = {"rows": None, "fields": 0, "fields with gaps": 2}


@pytest.mark.parametrize("aux", ["engine", "tcp"])
@pytest.mark.parametrize(
    ("here", "there"),
    [("fields", "fields with gaps"), ("fields with gaps", "rows"), ("rows", "fields")],
)
def test_rows_and_fields_of_one_schema_pair(here: Form, there: Form, aux: Literal["engine", "tcp"]) -> None:
    source = Pools.allocate(MHA, aux=made(SCHEMA, 4, GAPS[here]))
    target = Pools.allocate(MHA, aux=made(SCHEMA, 6, GAPS[there]))
    with paired(config(aux=aux), source=source, target=target) as pair:
        assert source.aux is not None
        assert target.aux is not None
        sender, receiver = pair.open(7)
        source.aux.set(2, RoomId(7), {"token": 42, "p": np.arange(8, dtype=np.float32), "n": 3})
        sender.init(2, 2)
        receiver.send_metadata([9, 4], 5)
        sender.send([1, 20])
        finish(sender, receiver)
        got = target.aux.get(5, RoomId(7))
        assert (int(got["token"]), int(got["n"])) == (42, 3)
        assert got["p"].tolist() == list(range(8))
        # A slot that was given to another room meanwhile is noticed, whatever its form.
        sender, receiver = pair.open(8)
        sender.init(1, 2)
        with pytest.raises(KVTransferError, match="aux slot 2 does not hold the data of room 8"):
            sender.send([0])
        source.aux.give(2, RoomId(8))
        sender.send([0])
        source.aux.give(2, RoomId(99))
        receiver.send_metadata([0], 1)
        receiver.wait(soon())
        failure = receiver.failure()
        assert receiver.poll() is KVPoll.FAILED
        assert failure is not None
        assert failure.code is FailureCode.AUX
        assert failure.there_is == "it holds the data of room 99"


def test_fields_of_another_name_do_not_pair() -> None:
    source = Pools.allocate(MHA, aux=MetadataBuffers.of_fields({"a": np.zeros((2, 4), np.int32)}))
    target = Pools.allocate(MHA, aux=MetadataBuffers.of_fields({"b": np.zeros((2, 4), np.int32)}))
    with paired(source=source, target=target) as pair:
        sender, receiver = pair.open(1)
        receiver.wait(soon())
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.INCOMPATIBLE
        assert "aux schema: prefill a:int32[4], decode b:int32[4]" in failure.there_is
        sender.abort()
