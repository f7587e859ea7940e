"""Fields of layouts, schemas and topologies as callers hand them in: made plain, or refused by name.

The validators put the plain form into the field: a Python int of numpy's or a 0-d tensor, a tuple of a list.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import attrs

from pdcore.checks import scalars
from pdcore.checks.scalars import shown, whole
from pdcore.errors import LayoutError

__all__ = [
    "as_integer",
    "as_integers",
    "as_layers",
    "as_member",
    "as_several",
    "instance_of",
    "integer",
    "integers",
    "member",
    "natural",
    "optional_integer",
    "plain",
    "several",
    "text",
]

E = TypeVar("E", bound=Enum)
T = TypeVar("T")
Validator = Callable[[object, "attrs.Attribute[Any]", Any], None]


def as_integer(what: str, value: object) -> int:
    """Return an integer of any library as an int; LayoutError names ``what`` where it is none."""
    number = whole(value)
    if number is None:
        raise LayoutError(f"{what} is no integer", shown(value), "hand in a whole number")
    return number


def as_integers(what: str, value: object) -> tuple[int, ...]:
    """Return some integers; a single one stands for a tuple of one, as in numpy's shapes."""
    if (number := whole(value)) is not None:
        return (number,)
    if (items := scalars.several(value)) is not None:
        return tuple(as_integer(what, one) for one in items)
    raise LayoutError(f"{what} is no sequence of integers", shown(value), "hand in a tuple of integers")


def as_layers(layers: object) -> tuple[int, ...]:
    """Return absolute layer ids; a mere count is refused, since it does not say which layers these are."""
    if (count := whole(layers)) is None:
        return as_integers("layers", layers)
    to_do = f"hand in the layers' absolute ids, such as layers=range({count})"
    raise LayoutError("layers are counted, not named", f"layers={count}", to_do)


def as_member(what: str, kind: type[E], value: object) -> E:
    """Return a member of an enum; its value is welcome as well."""
    try:
        return kind(value)
    except Exception as error:  # a ValueError, or what the value raises where it is compared
        known = ", ".join(f"{kind.__name__}.{one.name}" for one in kind)
        raise LayoutError(f"{what} is no {kind.__name__}", shown(value), f"use one of {known}") from error


def as_several(what: str, kind: type[T], value: object) -> tuple[T, ...]:
    """Return some instances of a class; a single one stands for a tuple of one."""
    items = (value,) if isinstance(value, kind) else scalars.several(value)
    given = value
    if items is not None:
        right = tuple(item for item in items if isinstance(item, kind))
        if len(right) == len(items):
            return right
        given = next(item for item in items if not isinstance(item, kind))
    to_do = f"hand in a tuple of {kind.__name__}"
    raise LayoutError(f"{what} is no sequence of {kind.__name__}", shown(given), to_do)


def plain(convert: Callable[[str, Any], object]) -> Validator:
    """Return the validator that puts into a field what ``convert(its name, its value)`` returns."""

    def validate(instance: object, field: attrs.Attribute[Any], value: object) -> None:
        made = convert(f"{type(instance).__name__}.{field.name}", value)
        if made is not value:
            object.__setattr__(instance, field.name, made)  # only while it is made: it is frozen

    return validate


def _natural(what: str, value: object) -> int:
    number = as_integer(what, value)
    if 0 <= number < 2**64:
        return number
    raise LayoutError(f"{what} is out of range", str(number), "hand in a whole number from 0 to 2**64 - 1")


def _text(what: str, value: object) -> object:
    if not isinstance(value, str) or not value:
        raise LayoutError(f"{what} is no name", shown(value), "hand in text")
    return value


def integer(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Validate a field that holds an integer."""
    plain(as_integer)(instance, field, value)


def natural(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Validate a field that holds a number of bytes, or an address: 0 to 2**64 - 1."""
    plain(_natural)(instance, field, value)


def optional_integer(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Validate a field that holds an integer or None."""
    if value is not None:
        integer(instance, field, value)


def integers(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Validate a field that holds a tuple of integers."""
    plain(as_integers)(instance, field, value)


def text(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Validate a field that holds a name."""
    plain(_text)(instance, field, value)


def member(kind: type[Enum]) -> Validator:
    """Return the validator of a field that holds a member of an enum."""
    return plain(lambda what, value: as_member(what, kind, value))


def instance_of(kind: type) -> Validator:
    """Return the validator of a field that holds an instance of a class."""

    def check(what: str, value: object) -> object:
        if isinstance(value, kind):
            return value
        raise LayoutError(f"{what} is no {kind.__name__}", shown(value), f"hand in a {kind.__name__}")

    return plain(check)


def several(kind: type) -> Validator:
    """Return the validator of a field that holds a tuple of instances of a class."""
    return plain(lambda what, value: as_several(what, kind, value))
