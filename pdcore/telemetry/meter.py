"""The managers' figures as OpenTelemetry gauges, looked at when they are collected."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from pdcore.telemetry.figures import FIGURES, Figure, Watched

__all__ = ["watched_by"]

_LOCK = threading.Lock()
_WATCHED: weakref.WeakKeyDictionary[object, Watched] = weakref.WeakKeyDictionary()
"""By meter provider; the lock guards it."""


class _Global:
    """Stands for the global meter provider, which may be set after the first exporter was made."""


_GLOBAL = _Global()


def watched_by(provider: MeterProvider | None) -> Watched:
    """Return the managers that the gauges of a meter provider show; None: of the global one.

    The first who asks has the gauges made, so that nobody makes them twice.
    """
    with _LOCK:
        found = _WATCHED.get(provider or _GLOBAL)
        if found is None:
            found = _WATCHED[provider or _GLOBAL] = Watched()
            meter = get_meter("pdcore", meter_provider=provider)
            for figure in FIGURES:
                look = _looking(figure, found)
                meter.create_observable_gauge(f"pdcore.{figure.name}", [look], description=figure.text)
        return found


def _looking(figure: Figure, watched: Watched) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def look(_: CallbackOptions) -> Iterator[Observation]:
        for values, value in figure.of(watched.scene()).items():
            yield Observation(value, dict(zip(figure.labels, values, strict=True)))

    return look
