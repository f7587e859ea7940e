"""Untyped values into attrs classes, through cattrs: all problems at once, each with its path."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn, override

from pdcore.config.auth_key import AuthKey, auth_key
from pdcore.errors import ConfigError, ConfigProblem

__all__ = ["Text", "nearest", "structure_options", "try_structure"]

T = TypeVar("T")

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class Text(str):
    """A value that was written as text (environment, command line), so that it may be converted."""

    __slots__ = ()


def nearest(name: str, known: Iterator[str] | list[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def try_structure(cls: type[T], values: Mapping[str, object]) -> tuple[T | None, list[tuple[str, str]]]:
    """Return the instance, or None and every problem as (path, reason)."""
    try:
        return _CONVERTER.structure(values, cls), []
    except ClassValidationError as error:
        problems = list(_problems(error, ""))
    # Rules between fields only ran if every field was right: look again without the wrong values.
    known_paths = {path for path, _ in problems}
    try:
        _CONVERTER.structure(_without(values, known_paths), cls)
    except ClassValidationError as error:
        problems += [(path, reason) for path, reason in _problems(error, "") if path not in known_paths]
    return None, problems


def structure_options(
    cls: type[T], values: Mapping[str, object], origin: Callable[[str], str] | str = "code"
) -> T:
    """Structure a backend's own options class.

    Args:
        cls: an attrs class.
        values: by option name; instances of :class:`Text` are converted to the field's type.
        origin: where the values come from, or a function that says it per option name.

    Raises:
        ConfigError: listing every unknown, missing, mistyped or refused option.
    """
    instance, problems = try_structure(cls, values)
    if instance is None:
        raise ConfigError(
            [
                ConfigProblem(
                    f"backend_options.{path}",
                    origin if isinstance(origin, str) else origin(path.split(".")[0]),
                    reason,
                )
                for path, reason in problems
            ]
        )
    return instance


def _without(values: Mapping[str, object], paths: set[str], prefix: str = "") -> dict[str, object]:
    return {
        key: _without(value, paths, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if prefix + key not in paths
    }


def _problems(error: BaseException, path: str) -> Iterator[tuple[str, str]]:
    def below(name: object) -> str:
        return f"{path}.{name}" if path else str(name)

    if isinstance(error, ClassValidationError):
        noted, plain = error.group_exceptions()
        for inner, note in noted:
            yield from _problems(inner, below(note.name))
        for inner in plain:
            yield from _problems(inner, path)
    elif isinstance(error, IterableValidationError):
        indexed, plain = error.group_exceptions()
        for inner, index in indexed:
            yield from _problems(inner, below(index.index))
        for inner in plain:
            yield from _problems(inner, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields):
            yield below(key), f"is unknown{nearest(key, known) or '; known are: ' + ', '.join(known)}"
    elif isinstance(error, ConfigError):
        for problem in error.problems:
            yield below(problem.path), problem.reason
    elif isinstance(error, KeyError):
        yield path, "is required"
    else:
        yield path, str(error.args[0]) if error.args else type(error).__name__


def _checked(field: attrs.Attribute[Any]) -> Callable[[Any, Any], Any]:
    """Structure one field and validate it there, so that a wrong field does not hide the next one."""

    def structure(value: Any, kind: Any) -> Any:
        structured = _CONVERTER.structure(value, kind)
        try:
            if field.validator is not None:
                field.validator(None, field, structured)
        except ConfigError as error:
            raise ValueError(error.problems[0].reason) from None
        except AttributeError:
            pass  # it looks at other fields of the instance: the constructor runs it
        return structured

    return structure


def _attrs_hook(cls: type) -> Callable[[Any, Any], Any]:
    overrides: dict[str, Any] = {
        field.name: override(struct_hook=_checked(field)) for field in attrs.fields(cls) if field.init
    }
    structure: Callable[[Any, Any], Any] = make_dict_structure_fn(
        cls, _CONVERTER, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **overrides
    )

    def from_mapping(value: Any, kind: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a table, is {value!r}")
        return structure(value, kind)

    return from_mapping


def _int(value: object, _: object) -> int:
    if type(value) is int:
        return value
    try:
        if isinstance(value, Text):
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"must be an integer, is {value!r}")


def _float(value: object, _: object) -> float:
    if isinstance(value, (int, float, Text)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise ValueError(f"must be a number, is {value!r}")


def _bool(value: object, _: object) -> bool:
    if type(value) is bool:
        return value
    if isinstance(value, Text) and value.lower() in TRUE + FALSE:
        return value.lower() in TRUE
    raise ValueError(f"must be true or false, is {value!r}")


def _str(value: object, _: object) -> str:
    if isinstance(value, str):
        return str(value)
    raise ValueError(f"must be text, is {value!r}")


def _auth_key(value: object, _: object) -> AuthKey | None:
    if not isinstance(value, (AuthKey, str)):
        raise ValueError(f"must be text, is of type {type(value).__name__}")  # the value is not to be shown
    try:
        return auth_key(value)
    except ConfigError as error:
        raise ValueError(error.problems[0].reason) from None


def _enum(value: object, kind: type[Enum]) -> Enum:
    for member in kind:
        if (
            value is member
            or value == member.value
            or (isinstance(value, Text) and value == str(member.value))
        ):
            return member
    raise ValueError(f"must be one of {', '.join(repr(m.value) for m in kind)}, is {value!r}")


def _is_literal(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is Literal


def _literal(value: object, kind: object) -> object:
    for choice in get_args(kind):
        if value == choice or (isinstance(value, Text) and value == str(choice)):
            return choice
    raise ValueError(f"must be one of {', '.join(map(repr, get_args(kind)))}, is {value!r}")


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, hook in ((int, _int), (float, _float), (bool, _bool), (str, _str)):
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook(AuthKey, _auth_key)
    converter.register_structure_hook_func(lambda t: t is object, lambda value, _: value)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_func(lambda t: isinstance(t, type) and issubclass(t, Enum), _enum)
    converter.register_structure_hook_factory(attrs.has, _attrs_hook)
    return converter


_CONVERTER = _make_converter()
