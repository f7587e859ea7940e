"""Variables that Kubernetes makes of a Service, and Docker of a link, named ``pdcore-...``: not settings.

Kubernetes gives every pod, for each Service NAME of its namespace, ``NAME_SERVICE_HOST``,
``NAME_SERVICE_PORT`` (and ``_<PORTNAME>``), ``NAME_PORT`` (a URL), and ``NAME_PORT_<n>_<PROTOCOL>`` (and
``_PROTO``, ``_PORT``, ``_ADDR``). Docker gives the last two for a link, ``NAME_NAME`` (``/this/that``), and
``NAME_ENV_<variable>``. NAME is in capitals, with underscores.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection, Iterable, Mapping

__all__ = ["say_ignored", "service_links"]

_BY_NAME = re.compile(
    r"(?P<service>.+?)_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)",
    re.IGNORECASE | re.ASCII,
)
_URL = re.compile(r"(tcp|udp|sctp)://.+", re.IGNORECASE)
_log = logging.getLogger("pdcore.settings")
_lock = threading.Lock()  # guards _said
_said: set[str] = set()


def service_links(variables: Mapping[str, str], options: Collection[str] = ()) -> frozenset[str]:
    """Return the names of those that somebody made of a Service or a link, judged by name and value.

    ``options`` are those among them that may be a backend's options: they count only where a URL of the
    same service is found as well. A plain number in ``..._PORT`` is never a service's.
    """
    certain = {service for name, value in variables.items() if (service := _proven(name, value))}
    found = set()
    for name in variables:
        made = _BY_NAME.fullmatch(name)
        service = made["service"].upper() if made else ""
        if service and (name not in options or service in certain):
            found.add(name)
    # A link's other variables have names that can be anything: they follow the link.
    linked = tuple(f"{service}_ENV_" for service in certain)
    return frozenset(found) | {
        name for name, value in variables.items() if _proven(name, value) or name.upper().startswith(linked)
    }


def _proven(name: str, value: str) -> str:
    """Return whose name this is if the value is one that no setting has, else ""."""
    upper = name.upper()
    if upper.endswith("_PORT") and _URL.fullmatch(value):
        return upper[: -len("_PORT")]
    alias = value.rpartition("/")[2].upper().replace("-", "_").replace(".", "_")
    if value.startswith("/") and upper == f"{alias}_NAME":
        return alias
    return ""


def say_ignored(names: Iterable[str]) -> None:
    """Log which variables are ignored, each once per process."""
    with _lock:
        new = sorted(set(names) - _said)
        _said.update(new)
    if new:
        _log.warning(
            "ignoring %d variables that Kubernetes or Docker made of a service's name: %s (in a pod's spec, "
            "enableServiceLinks: false keeps them away)",
            len(new),
            ", ".join(new),
        )
