from __future__ import annotations

import re
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pdcore.contract.overlap import joined
from pdcore.contract.regions import OffsetArray, Region, RegionInfo, WriteBatch
from pdcore.errors import PlanError, RegistrationError
from pdcore.model import CPU, Device, DeviceKind

TOP = 2**64 - 1


def u64(*values: int) -> OffsetArray:
    return np.array(values, np.uint64)


def i64(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


# Regions


def test_a_numpy_array_becomes_a_region() -> None:
    memory = np.zeros((4, 6), np.float32)
    region = Region.of("pool", memory)
    assert (region.name, region.address, region.length, region.device) == (
        "pool",
        memory.ctypes.data,
        96,
        CPU,
    )
    assert region.owner is memory
    assert region.info == RegionInfo("pool", 96, CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.uint8])
def test_a_torch_tensor_becomes_a_region(dtype: torch.dtype) -> None:
    memory = torch.zeros(4, 6, dtype=dtype)
    region = Region.of("pool", memory)
    assert (region.address, region.length) == (memory.data_ptr(), memory.numel() * memory.element_size())
    assert region.device == CPU
    assert region.owner is memory


def test_a_contiguous_slice_of_a_tensor_starts_where_it_starts() -> None:
    memory = torch.zeros(10, 4, dtype=torch.int16)
    assert Region.of("tail", memory[5:]).address == memory.data_ptr() + 40


def test_a_region_shows_its_address_in_hex() -> None:
    assert "address=0x1000" in repr(Region("a", 4096, 1))


CACHE = torch.zeros(5, 2, 3, 4, dtype=torch.float16)


@pytest.mark.parametrize(
    ("memory", "start", "items"),
    [
        (CACHE[:, 0], 0, (5, 24, 48)),
        (CACHE[:, 1], 24, (5, 24, 48)),
        (CACHE[1:4, 1], 24 + 48, (3, 24, 48)),
        (CACHE[::2], 0, (3, 48, 96)),
        (CACHE.flatten()[::3], 0, (40, 2, 6)),
        (CACHE.view(10, 12)[:, :5], 0, (10, 10, 24)),
        # What vLLM hands out for hybrid models: (2, blocks, ...) over memory that is (blocks, 2, ...).
        (CACHE.transpose(0, 1)[1], 24, (5, 24, 48)),
    ],
)
def test_items_that_follow_one_another_with_gaps_are_a_region(
    memory: torch.Tensor, start: int, items: tuple[int, int, int]
) -> None:
    count, item_len, stride = items
    as_numpy = memory.numpy()
    for region in (Region.of("pool", memory), Region.of("pool", as_numpy)):
        assert region.address == CACHE.data_ptr() + start
        assert (region.length, region.item_len, region.item_stride) == (
            stride * (count - 1) + item_len,
            item_len,
            stride,
        )
        assert (region.info.items, region.info.stride) == (count, stride)


def test_a_view_of_one_item_or_of_neighbours_is_dense() -> None:
    for memory in (CACHE[:1, 0], CACHE[1], CACHE[2:], torch.zeros(5, 1, 4)[:, 0], torch.zeros(())):
        region = Region.of("pool", memory)
        assert (region.length, region.item_stride) == (memory.numel() * memory.element_size(), 0)


@pytest.mark.parametrize(
    ("length", "item_len", "item_stride"),
    [(10, 4, 3), (10, 0, 5), (3, 4, 8), (10, 4, 5), (13, 4, 8)],
)
def test_items_with_gaps_must_fill_their_region(length: int, item_len: int, item_stride: int) -> None:
    with pytest.raises(
        ValueError, match=f"{length} bytes are no whole items of {item_len}, {item_stride} bytes"
    ):
        RegionInfo("a", length, CPU, item_len, item_stride)


def test_items_are_counted() -> None:
    assert RegionInfo("a", 12, CPU, 4, 8).items == 2
    assert RegionInfo("a", 12, CPU, 4).items == 3
    assert (RegionInfo("a", 12).items, RegionInfo("a", 12).stride) == (1, 12)


@pytest.mark.parametrize(
    ("length", "item_len", "wrong"),
    [
        (10, 3, "region 'a': 10 bytes are no whole items of 3"),
        (10, -5, "'item_len' must be >= 0: -5"),
        (0, 0, "'length' must be >= 1: 0"),
    ],
)
def test_what_a_peer_tells_of_a_region_is_checked(length: int, item_len: int, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)):
        RegionInfo("a", length, CPU, item_len)
    assert RegionInfo("a", 10, CPU, 5).item_len == 5


def read_only() -> npt.NDArray[np.uint8]:
    memory = np.zeros(4, np.uint8)
    memory.flags.writeable = False
    return memory


@pytest.mark.parametrize(
    ("memory", "there_is"),
    [
        (np.zeros((4, 4), np.uint8)[:, ::2], "shape (4, 2), strides (4, 2), contiguous=False, writable=True"),
        (np.zeros((2, 3), np.uint8).T, "contiguous=False"),
        (np.zeros((4, 6), np.uint8)[::-1], "strides (-6, 1)"),
        (np.broadcast_to(np.zeros(6, np.uint8), (4, 6)), "strides (0, 1)"),
        (np.lib.stride_tricks.as_strided(np.zeros(9, np.uint8), (3, 4), (2, 1)), "strides (2, 1)"),
        (CACHE.transpose(2, 3), "shape (5, 2, 4, 3), strides (24, 12, 1, 4) in elements"),
        (CACHE.transpose(0, 1), "shape (2, 5, 3, 4), strides (12, 24, 4, 1) in elements"),
        (np.zeros(0, np.uint8), "shape (0,)"),
        (read_only(), "writable=False"),
        (np.array([None]), "dtype object"),
        (torch.zeros(4, 4).t(), "a tensor of 16 elements on cpu"),
        (torch.zeros(0), "a tensor of 0 elements"),
        (torch.zeros(4, device="meta"), "a tensor of 4 elements on meta"),
        (torch.zeros(4).to_sparse(), "torch.sparse_coo"),
        (bytearray(4), "a bytearray"),
        (None, "a NoneType"),
    ],
)
def test_memory_that_no_engine_can_write_to_is_refused(memory: object, there_is: str) -> None:
    with pytest.raises(RegistrationError) as caught:
        Region.of("pool", memory)
    assert caught.value.happened == "region 'pool' cannot be made of this memory"
    assert there_is in caught.value.there_is
    assert caught.value.to_do == (
        "hand in a writable, non-empty numpy array or torch tensor that is contiguous, or whose items are, "
        "one behind the other; where dimensions were transposed, hand it in as it lies in memory, and name "
        "the order in the layout (KVLayout order=...)"
    )


def test_regions_that_lie_between_one_another_are_joined_and_others_are_not() -> None:
    k, v, more = (Region.of(name, CACHE[:, part]) for name, part in (("k", 0), ("v", 1), ("more", 1)))
    apart = Region("apart", v.address + v.length, 8)
    twin = attrs.evolve(k, name="twin", device=Device(DeviceKind.CUDA, 0))
    both, alone, other = joined([apart, v, twin, k, more])
    assert (both.name, both.address, both.length) == ("k and 2 more", CACHE.data_ptr(), 240)
    assert (both.item_len, both.item_stride, both.owner is CACHE) == (0, 0, False)
    assert (alone, other) == (apart, twin)
    assert joined([]) == ()
    block = Region("block", v.address - 4, 300)
    assert [(r.name, r.length) for r in joined([v, block])] == [("block and 1 more", 300)]
    twice = [Region("a", 4096, 100), Region("b", 4096 + 50, 100)]
    assert joined(twice) == tuple(twice)


# Batches


@pytest.fixture
def batch() -> WriteBatch:
    """Two pairs, 0 -> 1 and 1 -> 0, with two entries and one."""
    return WriteBatch(i64(0, 1), i64(1, 0), i64(0, 2, 3), u64(0, 90, 40), u64(5, 20, 0), u64(10, 10, 10))


LOCAL, REMOTE = u64(100, 50), u64(10, 30)


def changed(batch: WriteBatch, **arrays: Any) -> WriteBatch:
    return attrs.evolve(batch, **arrays)


def refusal(batch: WriteBatch, local: OffsetArray = LOCAL, remote: OffsetArray = REMOTE) -> PlanError:
    with pytest.raises(PlanError) as caught:
        batch.prove_inside(local, remote)
    return caught.value


def test_a_batch_that_fills_its_regions_to_the_last_byte_is_fine(batch: WriteBatch) -> None:
    batch.prove_inside(LOCAL, REMOTE)
    assert (len(batch), batch.nbytes) == (3, 30)


def test_the_empty_batch_is_fine_even_without_regions() -> None:
    empty = WriteBatch.empty()
    empty.prove_inside(u64(), u64())
    assert (len(empty), empty.nbytes) == (0, 0)


def test_a_batch_of_one_pair_is_made_of_lists() -> None:
    batch = WriteBatch.of(1, 0, [0, 8], [8, 0], [8, 8])
    batch.prove_inside(u64(1, 16), u64(16))
    assert (batch.local_regions.tolist(), batch.remote_regions.tolist()) == ([1], [0])
    assert (batch.starts.tolist(), batch.nbytes) == ([0, 2], 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"local_offsets": u64(0, 90)},
        {"remote_offsets": u64(0, 5, 20, 0)},
        {"lengths": u64(10, 10)},
        {"remote_regions": i64(1)},
        {"local_regions": i64(0, 1, 1)},
        {"starts": i64(0, 3)},
        {"starts": i64()},
        {"starts": i64(1, 2, 3)},
        {"starts": i64(0, 2, 4)},
        {"starts": i64(0, 0, 3)},
        {"starts": i64(0, 3, 3)},
        {"starts": i64(0, -1, 3)},
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(
    batch: WriteBatch, changes: dict[str, npt.NDArray[np.generic]]
) -> None:
    error = refusal(changed(batch, **changes))
    assert error.happened == "a write batch contradicts itself"
    assert "local offsets" in error.there_is
    assert "every region pair at least one entry" in error.to_do


def test_pairs_without_any_entry_are_refused() -> None:
    error = refusal(attrs.evolve(WriteBatch.empty(), local_regions=i64(0), remote_regions=i64(0)))
    assert error.happened == "a write batch contradicts itself"


def test_an_entry_without_bytes_is_named(batch: WriteBatch) -> None:
    error = refusal(changed(batch, lengths=u64(10, 0, 10)))
    assert error.happened == "entry 1 of a write batch has no bytes"
    assert error.there_is == "local offset 90, remote offset 20, length 0"


@pytest.mark.parametrize("side", ["local", "remote"])
@pytest.mark.parametrize("region", [-1, 2, 2**62])
def test_a_region_that_does_not_exist_is_refused(batch: WriteBatch, side: str, region: int) -> None:
    error = refusal(changed(batch, **{f"{side}_regions": i64(0, region)}))
    assert error.happened == f"a write batch names a {side} region that does not exist"
    assert error.there_is == f"regions [0, {region}], 2 registered"
    assert error.to_do == "plan against the paired region table"


@pytest.mark.parametrize(
    ("changes", "happened", "there_is"),
    [
        ({"local_offsets": u64(0, 91, 40)}, "entry 1 of a write batch leaves its local region", "length 100"),
        ({"local_offsets": u64(0, 90, 41)}, "entry 2 of a write batch leaves its local region", "length 50"),
        (
            {"remote_offsets": u64(21, 20, 0)},
            "entry 0 of a write batch leaves its remote region",
            "length 30",
        ),
        ({"remote_offsets": u64(5, 20, 1)}, "entry 2 of a write batch leaves its remote region", "length 10"),
        ({"lengths": u64(10, 10, 11)}, "entry 2 of a write batch leaves its local region", "length 50"),
    ],
)
def test_the_first_entry_that_leaves_a_region_by_one_byte_is_named(
    batch: WriteBatch, changes: dict[str, OffsetArray], happened: str, there_is: str
) -> None:
    error = refusal(changed(batch, **changes))
    assert error.happened == happened
    assert error.there_is.endswith(f"region {there_is}")
    assert error.to_do == "check the page indices against the pools of both sides"


@pytest.mark.parametrize("field", ["local_offsets", "remote_offsets"])
@pytest.mark.parametrize("offset", [TOP, TOP - 9, TOP - 4, 2**63])
def test_an_end_that_wraps_around_is_outside(batch: WriteBatch, field: str, offset: int) -> None:
    error = refusal(changed(batch, **{field: u64(0, offset, 0)}))
    assert error.happened.startswith("entry 1 of a write batch leaves its")
    assert str(offset) in error.there_is


def test_a_length_that_wraps_around_is_outside(batch: WriteBatch) -> None:
    error = refusal(changed(batch, lengths=u64(10, TOP - 50, 10)))
    assert error.happened == "entry 1 of a write batch leaves its local region"


def test_a_negative_offset_cannot_hide_in_a_signed_array(batch: WriteBatch) -> None:
    error = refusal(changed(batch, local_offsets=i64(0, -10, 40)))
    assert error.happened == "a write batch has arrays of the wrong dtype"
    assert error.there_is.startswith("offsets and lengths int64, uint64, uint64")
    assert error.to_do == "make offsets and lengths uint64, regions and starts int64"


@pytest.mark.parametrize("field", [f.name for f in attrs.fields(WriteBatch)])
def test_an_array_of_another_dtype_is_refused(batch: WriteBatch, field: str) -> None:
    array = getattr(batch, field)
    error = refusal(changed(batch, **{field: array.astype(np.float64)}))
    assert error.happened == "a write batch has arrays of the wrong dtype"


def test_absolute_adds_the_bases_of_both_sides(batch: WriteBatch) -> None:
    source, target, lengths = batch.absolute(u64(1000, 2000), u64(TOP - 99, 7000))
    assert source.tolist() == [1000, 1090, 2040]
    assert target.tolist() == [7005, 7020, TOP - 99]
    assert lengths.tolist() == [10, 10, 10]
    assert {source.dtype, target.dtype, lengths.dtype} == {np.dtype(np.uint64)}


def test_a_batch_is_narrowed_to_some_region_pairs() -> None:
    batch = WriteBatch(
        i64(4, 5, 6),
        i64(7, 8, 9),
        i64(0, 2, 3, 5),
        u64(1, 2, 3, 4, 5),
        u64(6, 7, 8, 9, 10),
        u64(1, 1, 2, 3, 5),
    )
    part = batch.of_pairs(np.array([True, False, True]))
    assert (part.local_regions.tolist(), part.remote_regions.tolist()) == ([4, 6], [7, 9])
    assert part.starts.tolist() == [0, 2, 4]
    assert part.local_offsets.tolist() == [1, 2, 4, 5]
    assert part.remote_offsets.tolist() == [6, 7, 9, 10]
    assert part.lengths.tolist() == [1, 1, 3, 5]
    part.prove_inside(u64(*[100] * 10), u64(*[100] * 10))
    assert batch.of_pairs(np.array([True, True, True])) is batch
    assert len(batch.of_pairs(np.array([False, False, False]))) == 0
