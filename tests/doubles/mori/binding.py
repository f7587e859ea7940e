"""The manners of the real binding: its conversions of arguments, its TypeErrors, its enums."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence, Sized
from types import MappingProxyType, NoneType, UnionType
from typing import (
    Annotated,
    ClassVar,
    Generic,
    ParamSpec,
    SupportsIndex,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
E = TypeVar("E", bound="NativeEnum")

Int32 = Annotated[int, range(-(2**31), 2**31)]
UInt16 = Annotated[int, range(2**16)]
UInt64 = Annotated[int, range(2**64)]

MODULE = "libmori_pybinds"
NUMBER = "typing.SupportsInt | typing.SupportsIndex"


def convert(value: object, kind: object) -> object:
    """Convert as pybind11 does, and raise a bare TypeError where it refuses."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if isinstance(value, SupportsIndex) and (number := value.__index__()) in arguments[1]:
            return number
        raise TypeError
    if origin is Sequence:
        if not isinstance(value, Sized) or isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise TypeError
        return [convert(item, arguments[0]) for item in value]
    if kind is bool and (value is None or hasattr(value, "__bool__")):
        return bool(value)
    if kind is str and isinstance(value, bytes):
        return value.decode()
    if isinstance(kind, type | UnionType) and isinstance(value, kind):
        return value
    raise TypeError


def spelled(kind: object) -> str:
    """Return a type as the real signatures spell it."""
    if get_origin(kind) is Annotated:
        return NUMBER
    if isinstance(kind, UnionType):
        return " | ".join(spelled(part) for part in get_args(kind))
    if origin := get_origin(kind):
        return f"{'collections.abc.Sequence' if origin is Sequence else 'list'}[{spelled(get_args(kind)[0])}]"
    if kind is NoneType:
        return "None"
    assert isinstance(kind, type)
    return kind.__name__ if kind.__module__ == "builtins" else f"{MODULE}.{kind.__name__}"


def signature_text(function: Callable[..., object], owner: str = "") -> str:
    """Return a bound function's signature as pybind11 prints it; positional-only names count as ``argN``."""
    hints, parts = get_type_hints(function, include_extras=True), []
    owner = owner or function.__qualname__.split(".")[0]
    position = 0
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            parts.append(f"self: {MODULE}.{owner}")
            continue
        only = parameter.kind is parameter.POSITIONAL_ONLY
        part = f"{f'arg{position}' if only else parameter.name}: {spelled(hints[parameter.name])}"
        parts.append(part if parameter.default is parameter.empty else f"{part} = {parameter.default!r}")
        position += 1
    back = spelled(hints["return"]).replace(NUMBER, "int")
    return f"({', '.join(parts)}) -> {back}"


def binding(function: Callable[P, R]) -> Callable[P, R]:
    """Check and convert a function's arguments by its annotations, with the real binding's TypeErrors."""
    signature = inspect.signature(function)
    hints: dict[str, object] = {}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not hints:
            hints.update(get_type_hints(function, include_extras=True))
        try:
            bound = signature.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                if name != "self":
                    bound.arguments[name] = convert(value, hints[name])
        except TypeError:
            kind = "constructor" if function.__name__ == "__init__" else "function"
            raise TypeError(
                f"{function.__name__}(): incompatible {kind} arguments. The following argument types are "
                f"supported:\n    1. {signature_text(function)}\n\n"
                f"Invoked with: {[type(a).__name__ for a in args]} {kwargs}"
            ) from None
        return function(*bound.args, **bound.kwargs)

    return call


class Native:
    """An object of the native module: no attributes but its own, no copy, no pickle."""

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"'{MODULE}.{type(self).__name__}' object has no attribute {name!r}")
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str:
        raise TypeError(f"cannot pickle '{MODULE}.{type(self).__name__}' object")


class Property(Generic[T]):
    """A property of a native object, kept under ``_name``; assignment is checked, or refused."""

    def __init__(self, kind: object, default: T, *, readonly: bool = False) -> None:
        self.kind, self.default, self.readonly = kind, default, readonly

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> T:
        value: T = getattr(instance, f"_{self.name}", self.default)
        return value

    def __set__(self, instance: object, value: T) -> None:
        if self.readonly:
            raise AttributeError("can't set attribute")
        try:
            setattr(instance, f"_{self.name}", convert(value, self.kind))
        except TypeError:
            raise TypeError(
                f"(): incompatible function arguments. {self.name}: {spelled(self.kind)} <- {value!r}"
            ) from None


class Member:
    """Declare a member of a native enum; always the same object."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __set_name__(self, owner: type[NativeEnum], name: str) -> None:
        owner._names = {**owner._names, self.value: name}
        self.made: NativeEnum | None = None

    def __get__(self, instance: object, owner: type[E]) -> E:
        if self.made is None:
            self.made = owner(self.value)
        assert isinstance(self.made, owner)
        return self.made


class NativeEnum(Native):
    """Like ``py::enum_``: equal to its own kind only, never to an int; ``E(0) is E.A`` is False."""

    _names: ClassVar[Mapping[int, str]] = MappingProxyType({})

    @binding
    def __init__(self, value: Int32) -> None:
        self._value = value

    @property
    def value(self) -> int:
        return self._value

    @property
    def name(self) -> str:
        return self._names.get(self._value, "???")

    def __int__(self) -> int:
        return self._value

    __index__ = __hash__ = __int__

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and int(other) == self._value

    def __repr__(self) -> str:
        return f"<{self}: {self._value}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"
