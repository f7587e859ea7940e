"""Element types of a KV cache: their names, as torch spells them, and their sizes."""

from __future__ import annotations

import numpy as np

__all__ = ["ELEMENT_BITS", "bytes_of", "element_name"]

ELEMENT_BITS = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float4_e2m1fn_x2": 4,
    "uint8": 8,
    "int8": 8,
}
"""KV element types by their torch name, with the bits of one value.

``fnuz`` are the 8-bit floats of AMD's MI300. torch packs two values of ``float4_e2m1fn_x2`` into a byte and
calls that one element; here, as in a model's ``head_dim``, values are counted.
"""


def element_name(dtype: object) -> str:
    """Return how torch names a dtype: a torch dtype, a numpy dtype or scalar type, or the name itself."""
    if isinstance(dtype, np.dtype):
        return str(dtype.name)
    if isinstance(dtype, type):
        return str(np.dtype(dtype).name) if issubclass(dtype, np.generic) else dtype.__name__
    return str(dtype).removeprefix("torch.")


def bytes_of(values: int, bits: int) -> int | None:
    """Return the bytes that ``values`` values of ``bits`` bits fill; None: the last byte is not full."""
    whole, rest = divmod(values * bits, 8)
    return None if rest else whole
