"""Every part that a caller makes checks what it is given: plain in meaning and taken, or a typed error."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from pair import MHA, SCHEMA, paired, pools

import pdcore
from pdcore import (
    Attention,
    AuxDataCodec,
    AuxField,
    AuxSchema,
    BootstrapServer,
    Config,
    ConfigError,
    ControlConfig,
    CPSenders,
    DecodeManager,
    Device,
    DeviceKind,
    KVBuffer,
    KVLayout,
    LivenessConfig,
    MetadataBuffers,
    PDCoreError,
    Pools,
    PrefillManager,
    Region,
    RoomId,
    StateBuffer,
    StateComponent,
    StatePool,
    Timeouts,
    Topology,
    TransferConfig,
    TransferModel,
    load_config,
    select,
)
from pdcore.bootstrap.http.limits import Limits

SIZES = {"layers": range(2), "kv_heads": 2, "head_dim": 8, "page_size": 4, "num_pages": 8}


def broken() -> Iterator[int]:
    """A generator that fails while it is gone through."""
    yield 1
    raise KeyError("broken")


ONE = np.array(1)
"""Iterable by its type, and not by itself."""
NO_COUNTS: list[Any] = ["2", 2.0, None, True, math.nan, [2], np.array([2]), b"2", 1j]


def heads(**changes: Any) -> KVLayout:
    return KVLayout.heads(**{**SIZES, **changes})


def refused(make: Callable[[], object]) -> PDCoreError:
    """Return the typed error of a call, which says all three parts."""
    with pytest.raises(PDCoreError) as caught:
        make()
    error = caught.value
    assert all((error.happened, error.there_is, error.to_do))
    return error


# Layouts


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
@pytest.mark.parametrize("name", ["kv_heads", "head_dim", "page_size", "num_pages", "total_kv_heads"])
def test_sizes_of_a_layout_are_integers(name: str, value: Any) -> None:
    if name == "total_kv_heads" and value is None:
        return  # as many as this rank has
    assert name in refused(lambda: heads(**{name: value})).happened


@pytest.mark.parametrize(
    "layers", [2, np.int64(2), None, "ab", [1.5], ["a"], [True], [-1], [], 2.0], ids=repr
)
def test_layers_are_named_by_their_ids(layers: Any) -> None:
    refused(lambda: heads(layers=layers))
    refused(lambda: KVLayout.latent(layers=layers, latent_dim=8, page_size=4, num_pages=4))


def test_a_count_of_layers_is_answered_with_the_range_that_may_be_meant() -> None:
    error = refused(lambda: heads(layers=32))
    assert error.happened == "layers are counted, not named"
    assert error.to_do == "hand in the layers' absolute ids, such as layers=range(32)"


def test_integers_of_any_library_become_plain_ones() -> None:
    layout = heads(
        layers=np.arange(2), kv_heads=torch.tensor(2), head_dim=np.int8(8), page_size=np.uint8(4),
        num_pages=np.int64(8), total_kv_heads=np.int16(2), order=pdcore.layout.PageOrder.TOKEN_HEAD.value,
    )  # fmt: skip
    assert layout == heads()
    assert all(type(n) is int for n in (layout.page_size, layout.num_pages, layout.total_kv_heads))
    assert all(type(n) is int for b in layout.buffers for n in (b.layer, b.item_len))
    topology = Topology(tp_size=np.int64(4), tp_rank=torch.tensor(3), cp_senders="rank_0")  # type: ignore[arg-type]
    assert topology == Topology(tp_size=4, tp_rank=3, cp_senders=CPSenders.RANK_0)
    assert type(topology.tp_size) is int


@pytest.mark.parametrize(
    "make",
    [
        lambda: heads(order="sideways"),
        lambda: heads(dtype=5),
        lambda: KVLayout(4, 8, "bfloat16", "tails", 2, (KVBuffer(0, "k", 8),)),  # type: ignore[arg-type]
        lambda: KVLayout(4, 8, "bfloat16", Attention.HEADS, 2, None),  # type: ignore[arg-type]
        lambda: KVLayout(4, 8, "bfloat16", Attention.HEADS, 2, ("k",)),  # type: ignore[arg-type]
        lambda: KVBuffer(0, "k", 10.5),  # type: ignore[arg-type]
        lambda: KVBuffer("0", "k", 10),  # type: ignore[arg-type]
        lambda: KVBuffer(0, 5, 10),  # type: ignore[arg-type]
        lambda: KVBuffer(0, "", 10),
        lambda: StateBuffer("a", 64.0),  # type: ignore[arg-type]
        lambda: StateBuffer(None, 64),  # type: ignore[arg-type]
        lambda: StateBuffer("a", 64, (4.0,)),  # type: ignore[arg-type]
        lambda: StateBuffer("a", 64, (4,), "0"),  # type: ignore[arg-type]
        lambda: StateComponent("mamba", 8.0, (StateBuffer("a", 64),)),  # type: ignore[arg-type]
        lambda: StateComponent("mamba", 0, (StateBuffer("a", 64),)),
        lambda: StateComponent("mamba", 8, ("a",)),  # type: ignore[arg-type]
        lambda: StateComponent(5, 8, ()),  # type: ignore[arg-type]
        lambda: AuxField(5, "int64"),  # type: ignore[arg-type]
        lambda: AuxField("a", None),  # type: ignore[arg-type]
        lambda: AuxField("a", "int64", (3.0,)),  # type: ignore[arg-type]
        lambda: AuxField("a", "int64", "3"),  # type: ignore[arg-type]
        lambda: AuxField("a", "int64", (), "0"),  # type: ignore[arg-type]
        lambda: AuxSchema(None),  # type: ignore[arg-type]
        lambda: AuxSchema(("a",)),  # type: ignore[arg-type]
        lambda: AuxSchema("a"),  # type: ignore[arg-type]
        lambda: AuxSchema.standard(tokens="1"),  # type: ignore[arg-type]
        lambda: AuxSchema.standard(top_logprobs=1.5),  # type: ignore[arg-type]
        lambda: Region("a", 5.0, 10),  # type: ignore[arg-type]
        lambda: Region(5, 0, 10),  # type: ignore[arg-type]
        lambda: Region.of(5, np.zeros(3)),  # type: ignore[arg-type]
        lambda: heads(layers=torch.tensor(1.5)),
        lambda: heads(layers=broken()),
        lambda: heads(total_kv_heads=np.array([1, 2])),
        lambda: heads(order=np.zeros(1, [("a", "i4")])),
        lambda: StateComponent("mamba", 8, ONE),  # type: ignore[arg-type]
        lambda: StateBuffer("a", 64, broken()),  # type: ignore[arg-type]
        lambda: AuxField("a", torch.tensor(1)),  # type: ignore[arg-type]
        lambda: AuxField("a", "int64", torch.tensor(1.5)),  # type: ignore[arg-type]
        lambda: AuxSchema(ONE),  # type: ignore[arg-type]
        lambda: Region("a", -1, 10),
        lambda: Region("a", 2**64, 10),
        lambda: Region("a", 0, -10),
        lambda: Region("a", 0, 10, "cpu"),  # type: ignore[arg-type]
        *(lambda n=n: Region("a", 0, 10, item_len=n) for n in (None, "5", -1, 2.0, np.array([1, 2]))),
        lambda: Region("a", 0, 10, item_len=5, item_stride=None),  # type: ignore[arg-type]
        lambda: Pools.allocate(heads(num_pages=2**58)),
        lambda: MetadataBuffers(SCHEMA, 2**70),
        lambda: Device(np.zeros(1, [("a", "i4")])),  # type: ignore[arg-type]
        lambda: Device("tpu"),  # type: ignore[arg-type]
        lambda: Device(DeviceKind.CUDA, -1),
        lambda: Device(DeviceKind.CUDA, "0"),  # type: ignore[arg-type]
    ],
)
def test_descriptions_refuse_what_has_no_plain_meaning(make: Callable[[], object]) -> None:
    refused(make)


def test_descriptions_take_what_has_a_plain_meaning() -> None:
    field, buffer = AuxField("a", "int64", (3,)), StateBuffer("a", 64, (4,))
    given: list[tuple[Any, Any]] = [
        (AuxSchema(field), AuxSchema((field,))),  # type: ignore[arg-type]
        (AuxSchema([field]), AuxSchema((field,))),  # type: ignore[arg-type]
        (AuxField("a", np.int64, 3), field),  # type: ignore[arg-type]
        (AuxField("a", np.dtype("int64"), [3]), field),  # type: ignore[arg-type]
        (StateBuffer("a", np.int64(64), 4), buffer),  # type: ignore[arg-type]
        (StateComponent("m", 2, buffer), StateComponent("m", 2, (buffer,))),  # type: ignore[arg-type]
        (StateComponent("m", 2, [buffer]), StateComponent("m", 2, (buffer,))),  # type: ignore[arg-type]
        (Device("cuda", 1), Device(DeviceKind.CUDA, 1)),  # type: ignore[arg-type]
    ]
    for made, meant in given:
        assert made == meant
        assert hash(made) == hash(meant)


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
@pytest.mark.parametrize(
    "name", [f"{axis}_{what}" for axis in ("tp", "pp", "cp", "dp") for what in ("size", "rank")]
)
def test_a_topology_has_integers_only(name: str, value: Any) -> None:
    assert refused(lambda: Topology(**{name: value})).happened == f"Topology.{name} is no integer"


# Memory


def test_pools_take_arrays_and_tensors_in_the_layouts_order() -> None:
    arrays = [np.zeros((8, 128), np.uint8) for _ in range(4)]
    tensors = [torch.zeros(8, 4, 2, 8, dtype=torch.bfloat16) for _ in range(4)]
    for memory in (
        arrays,
        tensors,
        tuple(arrays),
        [Region.of(b.name, a) for b, a in zip(heads().buffers, arrays, strict=False)],
    ):
        made = Pools(heads(), memory)
        assert [region.name for region in made.kv] == ["layer.0.k", "layer.1.k", "layer.0.v", "layer.1.v"]
        assert [region.length for region in made.kv] == [1024] * 4
    component = StateComponent("m", 2, (StateBuffer("a", 4),))
    pool = StatePool(component, [np.zeros(8, np.uint8)])  # type: ignore[arg-type]
    assert Pools(heads(), arrays, state=[pool]).state[0].regions[0].name == "state.m.a"
    assert len(Pools.allocate(heads(), state=component).state) == 1  # type: ignore[arg-type]


def test_what_pools_of_tensors_receive_lies_in_the_tensors() -> None:
    tensors = [torch.zeros(64, 4, 2, 16, dtype=torch.bfloat16) for _ in MHA.buffers]
    target = Pools(MHA, tensors, aux=MetadataBuffers(SCHEMA, 4))
    with paired(target=target) as pair:
        sender, receiver = pair.open(1)
        sender.init(2)
        receiver.send_metadata(torch.tensor([3, 4]))
        sender.send(torch.tensor([5, 6]))
        assert receiver.wait(pdcore.Deadline.after(30)) is pdcore.KVPoll.SUCCESS
        for array, tensor in zip(pair.prefill.pools.arrays, tensors, strict=True):
            assert np.array_equal(array[[5, 6]], tensor[3:5].view(torch.uint8).reshape(2, -1).numpy())


MEMORY = [np.zeros((8, 128), np.uint8) for _ in range(4)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pools(heads(), None),  # type: ignore[arg-type]
        lambda: Pools(heads(), MEMORY[0]),  # type: ignore[arg-type]
        lambda: Pools(heads(), torch.zeros(4, 8, 128)),  # type: ignore[arg-type]
        lambda: Pools(heads(), MEMORY[:3]),
        lambda: Pools(heads(), [*MEMORY, MEMORY[0]]),
        lambda: Pools(heads(), dict.fromkeys("abcd", MEMORY[0])),  # type: ignore[arg-type]
        lambda: Pools(heads(), ["a"] * 4),
        lambda: Pools(heads(), [[0]] * 4),
        lambda: Pools(heads(), [np.zeros(5)] * 4),
        lambda: Pools(heads(), "abcd"),
        lambda: Pools(None, MEMORY),  # type: ignore[arg-type]
        lambda: Pools(heads(), MEMORY, aux=SCHEMA),  # type: ignore[arg-type]
        lambda: Pools(heads(), MEMORY, state=[StateComponent("m", 1, ())]),  # type: ignore[list-item]
        lambda: Pools.allocate("x"),  # type: ignore[arg-type]
        lambda: Pools.allocate(heads(), state=["x"]),  # type: ignore[list-item]
        lambda: Pools.allocate(heads(), aux=4),  # type: ignore[arg-type]
    ],
)
def test_pools_refuse_what_is_no_memory_of_their_layout(make: Callable[[], object]) -> None:
    refused(make)


# Aux


@pytest.mark.parametrize(
    "given",
    [
        *((SCHEMA, slots) for slots in (*NO_COUNTS, 0, -1)),
        *((schema, 4) for schema in (None, "x", AuxField("a", "int64"), [AuxField("a", "int64")])),
    ],
    ids=repr,
)
def test_aux_buffers_have_a_schema_and_a_number_of_slots(given: tuple[Any, Any]) -> None:
    refused(lambda: MetadataBuffers(*given))


def test_aux_buffers_refuse_what_is_no_device_or_memory() -> None:
    refused(lambda: MetadataBuffers(SCHEMA, 4, device="cpu"))  # type: ignore[arg-type]
    refused(lambda: MetadataBuffers(SCHEMA, 4, memory=b"x"))


@pytest.mark.parametrize(
    ("slot", "room", "values"),
    [
        *((slot, 1, {}) for slot in (*NO_COUNTS, -1, 4)),
        *((0, room, {}) for room in (*NO_COUNTS, -1, 2**63)),
        *((0, 1, values) for values in (None, [1], "a", 5, {"b": 1}, {5: 1})),
        *(
            (0, 1, {"a": value})
            for value in ("x", [1, 2], 1.5, None, 2**70, Ellipsis, datetime.date(2026, 1, 1))
        ),
        *((0, 1, {"v": value}) for value in ([1, 2], [[1], [2, 3]], torch.ones(3, device="meta"), "abc", 1)),
    ],
    ids=repr,
)
def test_an_aux_row_that_was_given_something_odd_stays_as_it_was(slot: Any, room: Any, values: Any) -> None:
    buffers = MetadataBuffers(AuxSchema((AuxField("a", "int64"), AuxField("v", "float32", (3,)))), 4)
    buffers.set(np.int32(0), RoomId(np.int64(1)), {"a": 7, "v": torch.ones(3)})
    refused(lambda: buffers.set(slot, room, values))
    found = buffers.get(0, RoomId(1))
    assert found["a"] == 7
    assert found["v"].tolist() == [1, 1, 1]
    if values == {}:
        refused(lambda: buffers.get(slot, room))


@pytest.mark.parametrize("slot", [*NO_COUNTS, -1, 4, 2**64], ids=repr)
def test_the_codec_of_aux_rows_knows_its_slots(slot: Any) -> None:
    codec = AuxDataCodec(MetadataBuffers(SCHEMA, 4))
    row = codec.encode(np.int32(3))
    codec.decode(ONE, row)  # type: ignore[arg-type]
    refused(lambda: codec.encode(slot))
    refused(lambda: codec.decode(slot, row))


# What everything starts from


@pytest.mark.parametrize("name", [None, b"local", 5, ["local"], "", "loc al", Ellipsis], ids=repr)
def test_a_backend_is_selected_by_its_name(name: Any) -> None:
    refused(lambda: select(name))


@pytest.mark.parametrize("options", [5, "x", [1], {5: 1}, {"copy_threads": "2"}, {"nope": 1}], ids=repr)
def test_the_options_of_a_backend_are_a_mapping(options: Any) -> None:
    refused(lambda: select("local", options))


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (Config, "backend", [5, "", b"local"]),
        (Config, "backend_options", [None, 5, [1], "x"]),
        (Config, "require_transport", [5, b"tcp"]),
        (Config, "host", [5, None, b"127.0.0.1"]),
        (Config, "auth_key", [5, b"0123456789abcdef", ["x"]]),
        *((Config, name, [None, 5, {}, "x"]) for name in ("control", "transfer", "timeouts", "liveness")),
        (TransferConfig, "model", ["inline", 5, True, TransferModel]),
        (TransferConfig, "aux", ["foo", None, 5, True]),
        (TransferConfig, "verify", ["yes", None, True, 5]),
        (TransferConfig, "prefix_reuse", ["no", None, 0, 1]),
        (TransferConfig, "lanes_per_peer", ["2", 1.5, None, True, math.nan, 0]),
        (ControlConfig, "port", ["1", 1.5, None, True, -1, 65536]),
        (Timeouts, "request", ["5", None, True, math.nan, math.inf, 0, -1, datetime.timedelta(1)]),
        (Timeouts, "pairing", ["5", None, True, math.nan]),
        (Timeouts, "shutdown", ["5", None, [5]]),
        (LivenessConfig, "interval", ["x", None, True, math.nan]),
        (LivenessConfig, "max_failures", ["3", 2.5, None, True]),
    ],
)
def test_configured_values_have_the_types_of_their_fields(kind: type, field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError) as caught:
            kind(**{field: value})
        assert caught.value.problems[0].path == field
        assert caught.value.problems[0].reason.startswith("must ")


def test_no_error_shows_what_was_handed_in_as_a_key() -> None:
    assert "hunter2" not in str(refused(lambda: Config(auth_key=b"hunter2hunter2hunter2")))  # type: ignore[arg-type]


def test_sources_of_a_configuration_are_mappings() -> None:
    load: Any = load_config
    for source in ("code", "cli", "environ", "toml_path"):
        refused(partial(load, **{source: 5}))
    for source in ("code", "cli", "environ"):
        refused(partial(load, **{source: {5: "1"}}))
    refused(partial(load, toml_path="a\0b"))
    for prefixes in (None, 5, [5], b"ab"):
        refused(partial(load, plugin_prefixes=prefixes))


def test_what_a_backend_is_selected_by_besides_its_name_are_mappings() -> None:
    chosen: Any = select
    for given in ("environ", "origins"):
        for value in (5, "x", [1], np.array([1, 2]), {5: "1"}):
            refused(partial(chosen, "local", **{given: value}))


def test_a_key_is_what_can_be_written_as_bytes() -> None:
    refused(lambda: Config(auth_key="\ud800" * 20))
    assert Config(auth_key="\udcff" * 16).auth_key is not None  # of an environment in Latin-1


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(Limits)])
def test_limits_of_the_bootstrap_service_are_numbers_above_zero(field: str) -> None:
    make: Any = Limits
    for value in ("5", None, True, math.nan, [2], np.array([1, 2]), 0, -1, 2**70, math.inf):
        error = refused(partial(make, **{field: value}))
        assert field in error.happened
    taken = getattr(make(**{field: np.int64(5)}), field)
    assert type(taken) in (int, float)
    assert taken == 5


@pytest.mark.parametrize(
    "given",
    [
        *({"port": port} for port in ("x", "80", None, 1.5, True, -1, 65536)),
        *({"host": host} for host in (None, 5, b"127.0.0.1", "")),
        {"auth_key": 5},
        {"clock": 5},
        {"limits": 5},
        {"advertise": 5},
    ],
    ids=repr,
)
def test_a_bootstrap_service_refuses_odd_values_when_it_is_made(given: dict[str, Any]) -> None:
    refused(lambda: BootstrapServer(**given))


PARTS: dict[str, list[Any]] = {
    "backend": ["local", None, pdcore],
    "pools": [MHA, None, []],
    "topology": [None, 4, {"tp_size": 1}],
    "config": [{"host": "x"}, {}, "x", 5],
    "subscribers": [print, None, [5], ["x"], "ab", 5],
}


@pytest.mark.parametrize("part", PARTS)
def test_managers_refuse_other_parts_before_anything_starts(part: str) -> None:
    good = {
        "backend": select("local"),
        "pools": pools(),
        "topology": Topology(),
        "config": None,
        "subscribers": (),
    }
    for wrong in PARTS[part]:
        given = {**good, part: wrong}
        for make in (
            lambda given=given: DecodeManager(**given),
            lambda given=given: PrefillManager(bootstrap="127.0.0.1:9", **given),
        ):
            error = refused(make)
            assert part in error.happened


def test_a_name_in_place_of_a_backend_is_answered_with_the_call_that_was_meant() -> None:
    error = refused(lambda: DecodeManager("local", pools(), Topology()))  # type: ignore[arg-type]
    assert error.there_is == "str 'local'"
    assert error.to_do == "hand in pdcore.select(name)"


def test_who_cannot_be_called_does_not_subscribe() -> None:
    with DecodeManager(select("local"), pools(), Topology()) as manager:
        for subscriber in (None, 5, "x", [print]):
            refused(lambda subscriber=subscriber: manager.subscribe(subscriber))  # type: ignore[misc]
        assert not manager.events.on
        manager.subscribe(print)()
