"""The auxiliary row of a request: named fields with dtype and shape. Pure descriptions."""

from __future__ import annotations

import math

import attrs
import numpy as np

from pdcore.checks.fields import as_integer, integers, optional_integer, plain, several, text
from pdcore.checks.names import repeated
from pdcore.checks.scalars import shown
from pdcore.errors import LayoutError

__all__ = ["AUX_DTYPES", "AuxField", "AuxSchema"]

AUX_ALIGNMENT = 64
"""Aux rows and fields start at multiples of this many bytes (the least RDMA-friendly size)."""

AUX_DTYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64"),
)
"""What numpy stores by value; the fields of an aux row have one of these."""


def _dtype_name(what: str, dtype: object) -> str:
    """Return numpy's name of a dtype; what is none, as it is written, is refused by the field."""
    if isinstance(dtype, str):
        return dtype
    try:
        return "" if dtype is None else np.dtype(dtype).name  # type: ignore[call-overload]  # refused below
    except Exception:  # what is none, and what a tensor says of its own dtype
        return shown(dtype)


@attrs.frozen
class AuxField:
    """A named auxiliary field: numpy dtype name and shape per request.

    ``writer_rank``: the prefill rank that fills it, where pairing shall check that its row is the one that
    decode gets; None: whichever that is.
    """

    name: str = attrs.field(validator=text)
    dtype: str = attrs.field(validator=plain(_dtype_name))
    shape: tuple[int, ...] = attrs.field(default=(), validator=integers)
    writer_rank: int | None = attrs.field(default=None, validator=optional_integer)

    def __attrs_post_init__(self) -> None:
        if self.dtype not in AUX_DTYPES or any(n < 1 for n in self.shape):
            raise LayoutError(
                f"the aux field {self.name!r} cannot lie in memory",
                f"dtype {self.dtype!r}, shape {self.shape}",
                f"use lengths of at least 1 and a dtype of {', '.join(AUX_DTYPES)}",
            )

    @property
    def nbytes(self) -> int:
        """Bytes of one value, before padding."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@attrs.frozen
class AuxSchema:
    """The fields of one aux row, in order, after a header that holds the slot's room.

    Every field starts at a multiple of 64 bytes; the header is the first 64 bytes, of which
    the first 8 are the room (int64, -1 for an empty slot).
    """

    fields: tuple[AuxField, ...] = attrs.field(default=(), validator=several(AuxField))

    def __attrs_post_init__(self) -> None:
        names = [f.name for f in self.fields]
        if twice := repeated(names):
            raise LayoutError(
                f"the aux schema names {', '.join(map(repr, twice))} twice",
                f"fields {', '.join(names)}",
                "give each field its own name",
            )

    @classmethod
    def standard(
        cls,
        *,
        tokens: int = 1,
        top_logprobs: int = 0,
        speculative_top_k: int = 0,
        hidden_size: int = 0,
        hidden_dtype: str = "float32",
    ) -> AuxSchema:
        """Return the fields that engines hand over, as SGLang's metadata buffers have them.

        Always ``output_ids``, ``cached_tokens`` and the output tokens' logprobs (``_val``, ``_idx``), of
        ``tokens`` each; with a count of 1 or more also top logprobs, speculative top-k and hidden states.
        numpy has no bfloat16: take uint16, and view it.
        """
        tokens, top_logprobs = as_integer("tokens", tokens), as_integer("top_logprobs", top_logprobs)
        speculative_top_k = as_integer("speculative_top_k", speculative_top_k)
        hidden_size = as_integer("hidden_size", hidden_size)
        top, spec = (tokens, top_logprobs), (tokens, speculative_top_k)
        fields = [
            AuxField("output_ids", "int32", (tokens,)),
            AuxField("cached_tokens", "int32"),
            AuxField("output_token_logprobs_val", "float32", (tokens,)),
            AuxField("output_token_logprobs_idx", "int32", (tokens,)),
        ]
        if top_logprobs:
            fields.append(AuxField("output_top_logprobs_val", "float32", top))
            fields.append(AuxField("output_top_logprobs_idx", "int32", top))
        if speculative_top_k:
            fields.append(AuxField("output_topk_p", "float32", spec))
            fields.append(AuxField("output_topk_index", "int64", spec))
        if hidden_size:
            fields.append(AuxField("output_hidden_states", hidden_dtype, (hidden_size,)))
        return cls(tuple(fields))

    def offsets(self) -> dict[str, int]:
        """Return the byte offset of each field within a row."""
        out: dict[str, int] = {}
        at = AUX_ALIGNMENT
        for field in self.fields:
            out[field.name] = at
            at += -(-field.nbytes // AUX_ALIGNMENT) * AUX_ALIGNMENT
        return out

    @property
    def row_len(self) -> int:
        """Bytes of one row, header included."""
        padded = (-(-f.nbytes // AUX_ALIGNMENT) * AUX_ALIGNMENT for f in self.fields)
        return AUX_ALIGNMENT + sum(padded)
