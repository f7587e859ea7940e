"""What an engine can do and promise, as data. The core decides by it, never by a backend's name."""

from __future__ import annotations

import attrs

from pdcore.model import DeviceKind

__all__ = ["EngineCapabilities"]


@attrs.frozen
class EngineCapabilities:
    """Facts about an engine. The core decides by these and never by a backend's name.

    ``max_outstanding_entries`` is per peer over all threads and ``max_entry_bytes`` per entry
    (None: no limit). ``entry_cost`` is the engine's own cost of one more entry, in
    seconds: a large transfer begins in pieces of what it affords in 30 ms, and goes packed where copies cost
    less (``transfer.staging``).
    ``asynchronous``: ``write`` returns before the bytes moved, so that inline submission works. ``prompt``:
    a ``write`` of up to a MiB takes no longer than copying it, whatever state the peer is in, so that it may
    be called where other peers wait for their turn; an asynchronous engine need not say it.
    ``drained_on_failure``: a transfer that FAILED is DRAINED as soon as it FAILED, unless ``close`` ended
    it; without it one may be UNKNOWN at first, and become DRAINED or not (see
    :class:`~pdcore.contract.Quiescence`). ``remote_bounds_checked``: the far side refuses an address outside
    its regions, whatever the writer believes. ``revocable``: ``revoke`` can prove a peer silent.
    ``silent_after_close``: once ``close`` returned, nothing that it had sent can land at a peer any
    more, not even what a stopped peer has not read yet. ``settles``: ``settle`` proves that nothing of a
    process that has ended can land any more. ``aux``: aux rows may travel through it.
    ``descriptors``: file descriptors that an engine opens at most when it starts, ``descriptors_per_peer``
    for one peer, on either side. Without them it is not tried, since libraries abort where one is missing.
    """

    max_outstanding_entries: int | None = None
    max_entry_bytes: int | None = None
    entry_cost: float = 0.0
    asynchronous: bool = False
    prompt: bool = False
    memory_kinds: frozenset[DeviceKind] = frozenset({DeviceKind.CPU})
    drained_on_failure: bool = False
    remote_bounds_checked: bool = False
    revocable: bool = False
    silent_after_close: bool = False
    settles: bool = False
    aux: bool = False
    descriptors: int = 0
    descriptors_per_peer: int = 0
