"""The parser of every command, and the kinds of values that several of them take."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from pdcore.host.console import UsageError, say
from pdcore.model import Device, DeviceKind

__all__ = ["Parser", "count", "device", "key_value", "number", "positive", "whole"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are :class:`UsageError`: they say what there is, and what was meant perhaps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # those of argparse
        super().__init__(*args, **(kwargs | {"allow_abbrev": False}))

    def error(self, message: str) -> NoReturn:
        self._refuse(message, "", f"see {self.prog} --help")

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads by the namespace's class
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and refuse what is left: it belongs to this command, not to those above it."""
        parsed, left = super().parse_known_args(args, namespace)
        if left:
            options = [name for action in self._actions for name in action.option_strings]
            self._no_such("argument", left[0], options)
        return parsed, left

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.metavar if isinstance(action.metavar, str) and not action.option_strings else ""
            self._no_such(name.lower() or "/".join(action.option_strings), value, action.choices)

    def _no_such(self, what: str, value: object, known: Iterable[object]) -> NoReturn:
        names = [str(name) for name in known]
        plain = {name.lstrip("-"): name for name in names}  # else each option is much like another
        close = difflib.get_close_matches(str(value).partition("=")[0].lstrip("-"), plain, n=1)
        meant = f"did you mean {plain[close[0]]!r}?" if close else ""
        self._refuse(f"there is no {what} {value!r}", ", ".join(names), meant or f"see {self.prog} --help")

    def _refuse(self, happened: str, there_is: str, to_do: str) -> NoReturn:
        raise UsageError(self.prog, happened, there_is, to_do, self.format_usage().rstrip())

    def _print_message(self, message: str, file: object = None) -> None:
        if message:
            say(message.rstrip("\n"))


def device(text: str) -> Device:
    """Return the device of ``cpu``, ``cuda`` or ``cuda:1``."""
    kind, colon, index = text.partition(":")
    known = [one.value for one in DeviceKind]
    if kind not in known or (colon and not index.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: {', '.join(known)}, or cuda:1 and so on")
    return Device(DeviceKind(kind), int(index or 0))


def key_value(text: str) -> tuple[str, str]:
    """Return the two parts of ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        """Read a whole number within its bounds."""
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} does not lie in {low:,} to {high:,}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Return what reads a number from ``low`` to ``high``."""

    def read(text: str) -> float:
        """Read a number within its bounds."""
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} does not lie in {low:g} to {high:g}")
        return value

    return read


count = whole(1, 10**9)
"""Reads a whole number of at least 1."""

positive = number(1e-9, 1e9)
"""Reads a number above 0."""
