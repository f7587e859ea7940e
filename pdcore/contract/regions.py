"""Registered memory and the copies between it: regions, and batches of offsets within them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs
import numpy as np
import numpy.typing as npt
from attrs.validators import ge

from pdcore.checks.fields import instance_of, natural, text
from pdcore.errors import PlanError, RegistrationError
from pdcore.layout.extent import Extent, are_items
from pdcore.model import CPU, Device, DeviceKind

__all__ = ["OffsetArray", "Region", "RegionInfo", "WriteBatch"]

OffsetArray = npt.NDArray[np.uint64]
"""Byte offsets or lengths, one-dimensional uint64."""


@attrs.frozen
class RegionInfo:
    """What a peer may know of a region: its name, its length in bytes, its device and its items.

    ``item_len``: bytes of a page, slot or row (0: it has no items). They are neighbours, and the region is
    a whole number of them; or ``item_stride`` bytes lie from one to the next, and the region ends with the
    last one. An engine may describe the items once and then write by number; a batch is not bound to them.
    """

    name: str
    length: int = attrs.field(validator=ge(1))
    device: Device = CPU
    item_len: int = attrs.field(default=0, validator=ge(0))
    item_stride: int = attrs.field(default=0, validator=ge(0))

    @item_stride.validator
    def _whole(self, _: object, item_stride: int) -> None:
        if not are_items(self.length, self.item_len, item_stride):
            apart = f", {item_stride} bytes apart" if item_stride else ""
            raise ValueError(
                f"region {self.name!r}: {self.length} bytes are no whole items of {self.item_len}{apart}"
            )

    @property
    def stride(self) -> int:
        """Bytes from the start of an item to that of the next; where there are no items, the length."""
        return self.item_stride or self.item_len or self.length

    @property
    def items(self) -> int:
        """How many items the region has; 1 where it has none."""
        return -(-self.length // self.stride)


@runtime_checkable
class _TensorLike(Protocol):
    """The part of ``torch.Tensor`` that a region needs; matched by shape, torch is not imported."""

    def data_ptr(self) -> int: ...
    def numel(self) -> int: ...
    def element_size(self) -> int: ...
    def stride(self) -> tuple[int, ...]: ...
    @property
    def shape(self) -> Sequence[int]: ...


@attrs.frozen
class Region:
    """Registered memory: ``length`` bytes at ``address`` on ``device``; ``owner`` keeps it alive.

    ``item_len`` and ``item_stride`` are those of :class:`RegionInfo`; :class:`~pdcore.memory.Pools` sets
    them from the layouts. ``shape`` is that of the array or tensor, if it was one.
    """

    name: str = attrs.field(validator=text)
    address: int = attrs.field(repr=hex, validator=natural)
    length: int = attrs.field(validator=natural)
    device: Device = attrs.field(default=CPU, validator=instance_of(Device))
    owner: object = attrs.field(default=None, repr=False, eq=False)
    item_len: int = attrs.field(default=0, validator=natural)
    item_stride: int = attrs.field(default=0, validator=natural)
    shape: tuple[int, ...] = attrs.field(default=(), repr=False, eq=False)

    @classmethod
    def of(cls, name: str, memory: object) -> Region:
        """Return the region of a writable numpy array or a torch tensor.

        It is C-contiguous; or a view whose items ``memory[i]`` are contiguous and lie further apart than
        they are long, such as ``cache[:, 0]`` of a ``cache`` that is ``(blocks, 2, ...)``, or pages with
        padding between them. Then ``item_len`` and ``item_stride`` are set.

        Raises:
            RegistrationError: the memory is of neither kind, read-only, empty, or of another type.
        """
        if isinstance(memory, np.ndarray):
            shape = Extent(memory.shape, memory.strides, memory.itemsize)
            good = not memory.dtype.hasobject and memory.flags.writeable and shape.describable
            address, place = memory.ctypes.data, CPU
            there = f"a numpy array, dtype {memory.dtype}, shape {memory.shape}, strides {memory.strides}"
            there += f", contiguous={memory.flags.c_contiguous}, writable={memory.flags.writeable}"
        elif isinstance(memory, _TensorLike):
            device, layout = getattr(memory, "device", "cpu"), getattr(memory, "layout", "strided")
            kind = next((k for k in DeviceKind if k.value == getattr(device, "type", device)), None)
            there = f"a tensor of {memory.numel()} elements on {device}, {layout}"
            shape, good, address = Extent(), False, 0
            # Only a strided tensor on a known device may be asked for its pointer.
            if kind is not None and str(layout).endswith("strided"):
                there += f", shape {tuple(memory.shape)}, strides {tuple(memory.stride())} in elements"
                size = memory.element_size()
                shape = Extent(tuple(memory.shape), tuple(n * size for n in memory.stride()), size)
                good, address = shape.describable, memory.data_ptr()
            place = Device(kind or DeviceKind.CPU, getattr(device, "index", None) or 0)
        else:
            good, shape, address, place, there = False, Extent(), 0, CPU, f"a {type(memory).__name__}"
        if not good:
            raise RegistrationError(
                f"region {name!r} cannot be made of this memory",
                there,
                "hand in a writable, non-empty numpy array or torch tensor that is contiguous, or whose "
                "items are, one behind the other; where dimensions were transposed, hand it in as it lies "
                "in memory, and name the order in the layout (KVLayout order=...)",
            )
        items = (0, 0) if shape.dense else (shape.item_len, shape.strides[0])
        return cls(name, address, shape.nbytes, place, memory, *items, shape.lengths)

    @property
    def info(self) -> RegionInfo:
        """What the peer may know of this region."""
        return RegionInfo(self.name, self.length, self.device, self.item_len, self.item_stride)


@attrs.frozen(eq=False)
class WriteBatch:
    """Copies from local to remote regions, as a struct of arrays grouped by region pair.

    Pair ``p`` copies from region ``local_regions[p]`` to ``remote_regions[p]`` (indices in
    registration order, int64, shape (P,)). Its entries are ``starts[p]:starts[p + 1]`` (int64,
    shape (P + 1,)) of ``local_offsets``, ``remote_offsets`` and ``lengths`` (uint64, bytes,
    shape (N,)). Entries are copied in no particular order.
    """

    local_regions: npt.NDArray[np.int64]
    remote_regions: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    local_offsets: OffsetArray
    remote_offsets: OffsetArray
    lengths: OffsetArray

    @classmethod
    def empty(cls) -> WriteBatch:
        """Return the batch that copies nothing."""
        none, offsets = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        return cls(none, none, np.zeros(1, np.int64), offsets, offsets, offsets)

    @classmethod
    def of(
        cls,
        local_region: int,
        remote_region: int,
        local_offsets: npt.ArrayLike,
        remote_offsets: npt.ArrayLike,
        lengths: npt.ArrayLike,
    ) -> WriteBatch:
        """Return the batch of one region pair."""
        sizes = np.asarray(lengths, np.uint64)
        return cls(
            np.array([local_region]),
            np.array([remote_region]),
            np.array([0, len(sizes)]),
            np.asarray(local_offsets, np.uint64),
            np.asarray(remote_offsets, np.uint64),
            sizes,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes that the batch copies."""
        return int(self.lengths.sum())

    def of_pairs(self, chosen: npt.NDArray[np.bool_]) -> WriteBatch:
        """Return the batch of the region pairs that ``chosen`` tells, a bool of shape (P,)."""
        if chosen.all():
            return self
        counts = self.starts[1:] - self.starts[:-1]
        entries = chosen.repeat(counts)
        return WriteBatch(
            self.local_regions[chosen],
            self.remote_regions[chosen],
            np.concatenate((np.zeros(1, np.int64), counts[chosen].cumsum())),
            self.local_offsets[entries],
            self.remote_offsets[entries],
            self.lengths[entries],
        )

    def absolute(
        self,
        local_addresses: OffsetArray,
        remote_addresses: OffsetArray,
    ) -> tuple[OffsetArray, OffsetArray, OffsetArray]:
        """Return source addresses, target addresses and lengths, given both sides' region bases."""
        counts = self.starts[1:] - self.starts[:-1]
        source = self.local_offsets + local_addresses[self.local_regions].repeat(counts)
        target = self.remote_offsets + remote_addresses[self.remote_regions].repeat(counts)
        return source, target, self.lengths

    def prove_inside(self, local_lengths: OffsetArray, remote_lengths: OffsetArray) -> None:
        """Prove that every entry lies inside its local and its remote region.

        Raises:
            PlanError: lengths or dtypes of the arrays are wrong, a pair is empty or unknown, an entry
                has no bytes, or an entry leaves a region; the first such entry is named.
        """
        self._require_dtypes()
        n, pairs = len(self.lengths), len(self.local_regions)
        if not (
            len(self.local_offsets) == len(self.remote_offsets) == n
            and len(self.remote_regions) == pairs == len(self.starts) - 1
            and self.starts[0] == 0
            and self.starts[-1] == n
            and not np.count_nonzero(self.starts[1:] <= self.starts[:-1])
        ):
            raise PlanError(
                "a write batch contradicts itself",
                f"{len(self.local_offsets)} local offsets, {len(self.remote_offsets)} remote offsets, "
                f"{n} lengths, {pairs} local and {len(self.remote_regions)} remote regions, "
                f"starts {self.starts.tolist()[:8]}",
                "give every entry both offsets and a length, and every region pair at least one entry",
            )
        if n == 0:
            return
        if np.count_nonzero(self.lengths) < n:
            self._refuse(int(np.flatnonzero(self.lengths == 0)[0]), "has no bytes", "")
        for side, regions, offsets, limits in (
            ("local", self.local_regions, self.local_offsets, local_lengths),
            ("remote", self.remote_regions, self.remote_offsets, remote_lengths),
        ):
            # As unsigned, a negative region is huge. To count takes a third of the time of any() and max().
            if np.count_nonzero(regions.view(np.uint64) >= len(limits)):
                raise PlanError(
                    f"a write batch names a {side} region that does not exist",
                    f"regions {regions.tolist()[:8]}, {len(limits)} registered",
                    "plan against the paired region table",
                )
            ends = offsets + self.lengths
            limit = limits[regions]
            furthest = np.maximum.reduceat(ends, self.starts[:-1])
            if np.count_nonzero(furthest > limit) or np.count_nonzero(ends < offsets):
                spread = np.repeat(limit, np.diff(self.starts))
                bad = int(np.flatnonzero((ends > spread) | (ends < offsets))[0])
                self._refuse(bad, f"leaves its {side} region", f", region length {int(spread[bad])}")

    def _require_dtypes(self) -> None:
        # Signed offsets would turn sums into floats and pass a negative one.
        offsets = (self.local_offsets, self.remote_offsets, self.lengths)
        tables = (self.local_regions, self.remote_regions, self.starts)
        if all(a.dtype == np.uint64 for a in offsets) and all(a.dtype == np.int64 for a in tables):
            return
        raise PlanError(
            "a write batch has arrays of the wrong dtype",
            f"offsets and lengths {', '.join(str(a.dtype) for a in offsets)}; "
            f"regions and starts {', '.join(str(a.dtype) for a in tables)}",
            "make offsets and lengths uint64, regions and starts int64",
        )

    def _refuse(self, entry: int, why: str, more: str) -> None:
        raise PlanError(
            f"entry {entry} of a write batch {why}",
            f"local offset {int(self.local_offsets[entry])}, "
            f"remote offset {int(self.remote_offsets[entry])}, length {int(self.lengths[entry])}{more}",
            "check the page indices against the pools of both sides",
        )
