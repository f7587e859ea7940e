"""Whether a prefill and a decode rank fit together. Pure: two descriptions in, misfits out."""

from __future__ import annotations

from pdcore.errors import Misfit
from pdcore.layout import AuxSchema, KVLayout, StateComponent
from pdcore.topology import topology_misfits
from pdcore.wire import PeerDescription

__all__ = ["pairing_misfits"]


def pairing_misfits(prefill: PeerDescription, decode: PeerDescription) -> tuple[Misfit, ...]:
    """Return every field in which the two differ and must not; empty means they can be paired.

    Both sides compute this from the same two descriptions, so both report the same.
    """
    plain = (
        (
            "pdcore version",
            _series(prefill.version),
            _series(decode.version),
            "run one 0.x series everywhere",
        ),
        ("backend", prefill.backend, decode.backend, "select the same backend on both sides"),
        ("protocol", prefill.protocol, decode.protocol, "select the same backend variant on both sides"),
        (
            "aux transport",
            prefill.aux_transport.value,
            decode.aux_transport.value,
            "set transfer.aux alike on both sides",
        ),
    )
    return (
        *(Misfit(field, p, d, change) for field, p, d, change in plain if p != d),
        *topology_misfits(prefill.topology, decode.topology),
        *_layout_misfits(prefill.layout, decode.layout),
        *_state_misfits(prefill.state, decode.state),
        *_aux_misfits(prefill.aux, decode.aux),
    )


def _series(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _layout_misfits(prefill: KVLayout, decode: KVLayout) -> list[Misfit]:
    change = "serve the same model with the same cache settings on both sides"
    out = [
        Misfit(f"layout.{field}", str(p), str(d), change)
        for field in ("page_size", "dtype", "total_kv_heads")
        if (p := getattr(prefill, field)) != (d := getattr(decode, field))
    ]
    if prefill.attention is not decode.attention:
        out.append(Misfit("layout.attention", prefill.attention.value, decode.attention.value, change))
    ours = {b.name: b.item_len for b in prefill.buffers}
    theirs = {b.name: b.item_len for b in decode.buffers}
    if list(ours) != list(theirs):
        out.append(Misfit("layout.buffers", _names(ours, theirs), _names(theirs, ours), change))
    differing = [n for n in ours if n in theirs and ours[n] != theirs[n]]
    if differing:
        name = differing[0]
        out.append(
            Misfit(
                f"layout.item_len ({len(differing)} buffers, first {name})",
                f"{ours[name]} bytes",
                f"{theirs[name]} bytes",
                change,
            )
        )
    return out


def _names(buffers: dict[str, int], other: dict[str, int]) -> str:
    names, others = list(buffers), list(other)
    first = next((i for i, name in enumerate(names) if name not in others[i : i + 1]), len(names))
    return f"{len(names)} buffers, number {first} is {names[first] if first < len(names) else 'missing'}"


def _state_misfits(prefill: tuple[StateComponent, ...], decode: tuple[StateComponent, ...]) -> list[Misfit]:
    ours, theirs = [c.kind for c in prefill], [c.kind for c in decode]
    if ours == theirs:
        return []
    change = "declare the same state components in the same order"
    return [Misfit("state components", str(ours), str(theirs), change)]


def _aux_misfits(prefill: AuxSchema | None, decode: AuxSchema | None) -> list[Misfit]:
    if prefill == decode:
        return []
    return [Misfit("aux schema", _fields(prefill), _fields(decode), "use the same AuxSchema on both sides")]


def _fields(schema: AuxSchema | None) -> str:
    if schema is None:
        return "none"
    return (
        ", ".join(f"{f.name}:{f.dtype}{list(f.shape)}@{f.writer_rank}" for f in schema.fields) or "no fields"
    )
