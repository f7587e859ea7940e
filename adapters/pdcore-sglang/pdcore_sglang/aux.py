"""SGLang's metadata fields as pdcore's aux: the same memory, a region per field."""

from __future__ import annotations

import ctypes

import numpy as np
from sglang.srt.disaggregation.base.conn import KVArgs

from pdcore import MetadataBuffers
from pdcore_sglang.engine import Rank

__all__ = ["aux_buffers"]


def aux_buffers(args: KVArgs, rank: Rank) -> MetadataBuffers:
    """Return the aux buffers over SGLang's fields, as bytes in host memory, which pdcore reads none of."""
    places = zip(rank.aux, args.aux_data_ptrs, args.aux_data_lens, args.aux_item_lens, strict=True)
    fields = {
        name: np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(address)).reshape(-1, item)
        for name, address, length, item in places
    }
    return MetadataBuffers.of_fields(fields)
