"""The findings of ``pdcore doctor`` as lines of text: a title on the left, sentences on the right."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pdcore.cli.findings import Data

__all__ = ["rows"]


def rows(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the lines of a block: those of one field below each other, the first with its title."""
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        lines = _LINES[key](value) if key in _LINES and value else _plain(value)
        out += [(key.replace("_", " ") if n == 0 else "", line) for n, line in enumerate(lines)]
    return out


def _plain(value: object) -> list[str]:
    if value is None or value == {}:
        return []
    if isinstance(value, list):
        return [str(item) for item in value] or ["none"]
    return [str(value)]


def _of(line: Callable[[Data], str]) -> Callable[[object], list[str]]:
    """Return what writes a line for each item of a list, or one for a single item."""

    def lines(value: object) -> list[str]:
        items = value if isinstance(value, list) else [value]
        return [line(item) for item in items if isinstance(item, dict)]

    return lines


def _pairs(line: Callable[[str, object], str]) -> Callable[[object], list[str]]:
    def lines(value: object) -> list[str]:
        return [line(key, item) for key, item in value.items()] if isinstance(value, dict) else []

    return lines


def _option(option: Data) -> str:
    default = "required" if option["required"] else f"default {_shown(option['default'])}"
    origin = f", set by {option['origin']}" if option["origin"] else ""
    return f"{option['name']}={_shown(option['value'])} ({default}{origin})"


def _shown(value: object) -> str:
    return "none" if value is None else repr(value) if value == "" else str(value)


def _protocol(verdict: Data) -> str:
    return f"{verdict['protocol']}: {'usable' if verdict['usable'] else 'not usable'}, {verdict['reason']}"


def _echo(echo: Data) -> str:
    if not echo["good"]:
        return str(echo["reason"])
    return f"{echo['bytes']} bytes written and compared, {echo['gigabytes_per_second']:.2f} GB/s"


def _transport(transport: Data) -> str:
    return f"{transport['name']}, {transport['certainty']}: {transport['how']}".rstrip(": ")


def _observer(observer: Data) -> str:
    return f"{observer['name']} ({observer['distribution']}): {observer['reason'] or 'ready'}"


_LINES: dict[str, Callable[[object], list[str]]] = {
    "environment": _pairs(lambda name, value: f"{name}={'(cleared)' if value is None else value}"),
    "probe": _of(lambda probe: "ready" if probe["ready"] else str(probe["reason"])),
    "protocols": _of(_protocol),
    "options": _of(_option),
    "facts": _pairs(lambda title, fact: f"{title}: {fact}"),
    "transport": _of(_transport),
    "echo": _of(_echo),
    "observers": _of(_observer),
}
