"""Single values as callers hand them in: integers and numbers of any library, as Python's own."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from operator import index
from typing import SupportsFloat, SupportsIndex

__all__ = ["real", "several", "shown", "whole"]


def whole(value: object) -> int | None:
    """Return an integer of Python, numpy or a 0-d integer tensor as an int; None if it is anything else.

    A bool is no integer here: nobody numbers requests or pages with one on purpose.
    """
    if type(value) is int:
        return value
    if not isinstance(value, SupportsIndex) or not _single(value):
        return None
    try:
        return index(value)
    except Exception:  # floating point tensors, and whatever a third party's class raises
        return None


def real(value: object) -> float | None:
    """Return a finite number of any kind as a float; None if it is anything else, a bool or text included."""
    if type(value) is not float:
        # To ask whether it has a protocol takes ten times as long as to make a float of an int.
        if type(value) is not int and not (
            isinstance(value, SupportsFloat | SupportsIndex) and _single(value)
        ):
            return None
        try:
            value = float(value)
        except Exception:
            return None
    return value if math.isfinite(value) else None


def several(value: object) -> tuple[object, ...] | None:
    """Return what can be gone through as a tuple; None if it is anything else, or text."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        return None
    try:
        return tuple(value)
    except Exception:  # 0-d arrays and tensors, and whatever a third party's class or generator raises
        return None


def shown(value: object) -> str:
    """Return type and value for a message, cut to a line."""
    try:
        text = reprlib.repr(value).replace("\n", " ")
    except Exception:
        text = "which has no repr"
    return f"{type(value).__name__} {text}" if value is not None else "None"


def _single(value: object) -> bool:
    """Whether it can be one number: no bool of any library, and no array of one element."""
    dtype = str(getattr(value, "dtype", ""))
    return not isinstance(value, bool) and "bool" not in dtype and not getattr(value, "ndim", 0)
