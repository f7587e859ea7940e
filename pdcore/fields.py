"""Fields of layouts, schemas and topologies as callers hand them in: made plain, or refused by name.

The validators put the plain form into the field: a Python int of numpy's or a 0-d tensor, a tuple of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeVar

import attrs

from pdcore.errors import LayoutError
from pdcore.scalars import shown, whole

__all__ = [
    "as_integer",
    "as_integers",
    "as_layers",
    "as_member",
    "as_several",
    "integer",
    "integers",
    "member",
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
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return tuple(as_integer(what, one) for one in value)
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
    except ValueError as error:
        known = ", ".join(f"{kind.__name__}.{one.name}" for one in kind)
        raise LayoutError(f"{what} is no {kind.__name__}", shown(value), f"use one of {known}") from error


def as_several(what: str, kind: type[T], value: object) -> tuple[T, ...]:
    """Return some instances of a class; a single one stands for a tuple of one."""
    given = (value,) if isinstance(value, kind) else value
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        items = tuple(given)
        wrong = [item for item in items if not isinstance(item, kind)]
        if not wrong:
            return items
        given = wrong[0]
    to_do = f"hand in a tuple of {kind.__name__}"
    raise LayoutError(f"{what} is no sequence of {kind.__name__}", shown(given), to_do)


def plain(convert: Callable[[str, Any], object]) -> Validator:
    """Return the validator that puts into a field what ``convert(its name, its value)`` returns."""

    def validate(instance: object, field: attrs.Attribute[Any], value: object) -> None:
        made = convert(f"{type(instance).__name__}.{field.name}", value)
        if made is not value:
            object.__setattr__(instance, field.name, made)  # only while it is made: it is frozen

    return validate


def _text(what: str, value: object) -> object:
    if not isinstance(value, str) or not value:
        raise LayoutError(f"{what} is no name", shown(value), "hand in text")
    return value


def integer(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Validate a field that holds an integer."""
    plain(as_integer)(instance, field, value)


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


def several(kind: type) -> Validator:
    """Return the validator of a field that holds a tuple of instances of a class."""
    return plain(lambda what, value: as_several(what, kind, value))
