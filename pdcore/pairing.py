"""Whether a prefill and a decode rank fit together. Pure: two descriptions in, misfits out."""

from __future__ import annotations

from collections.abc import Sequence

from pdcore.backend import AuxTransport
from pdcore.errors import Misfit
from pdcore.layout import StateComponent
from pdcore.schema import AuxSchema
from pdcore.topology import Share, held_units, kv_share, state_share, topology_misfits
from pdcore.wire import PeerDescription

__all__ = ["chosen_aux_transport", "coverage_misfits", "pairing_misfits"]

SAME_MODEL = "serve the same model with the same cache settings on both sides"


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
        ("transfer.verify", prefill.verify, decode.verify, "set transfer.verify alike on both sides"),
        ("protocol", prefill.protocol, decode.protocol, "select the same backend variant on both sides"),
    )
    return (
        *(Misfit(field, p, d, change) for field, p, d, change in plain if p != d),
        *_aux_transport_misfits(prefill.aux_transports, decode.aux_transports),
        *topology_misfits(prefill.topology, decode.topology, prefill.layout.units),
        *_layout_misfits(prefill, decode),
        *_state_misfits(prefill.state, decode.state),
        *_aux_misfits(prefill.aux, decode.aux),
    )


def coverage_misfits(prefills: Sequence[PeerDescription], decode: PeerDescription) -> tuple[Misfit, ...]:
    """Return what a decode rank would not get exactly once from the prefill ranks that send to it.

    ``prefills`` describe the ``prefill_ranks`` of its mapping. Each pair of them is known to fit; this
    finds a layer that no pipeline stage holds, or two do. Decode alone sees all stages, so it decides.
    """
    units = decode.layout.units
    shares = [(p, kv_share(p.topology, decode.topology, units)) for p in prefills]
    offers = [(p, s, {b.name for b in p.layout.buffers}) for p, s in shares if s is not None]
    out = _coverage("layout.buffers", [b.name for b in decode.layout.buffers], offers)
    for index, component in enumerate(decode.state):
        parts = [(p, state_share(p.topology, decode.topology, sharded=component.sharded)) for p in prefills]
        held = [(p, s, {b.name for b in p.state[index].buffers}) for p, s in parts if s is not None]
        out += _coverage(f"state {component.kind!r}", [b.name for b in component.buffers], held)
    return tuple(out)


_Offer = tuple[PeerDescription, Share, set[str]]


def _coverage(field: str, names: Sequence[str], offers: Sequence[_Offer]) -> list[Misfit]:
    for cp_rank in sorted({p.topology.cp_rank for p, _, _ in offers}) or [0]:
        mine = [offer for offer in offers if offer[0].topology.cp_rank == cp_rank]
        for name in names:
            senders = [(p, share) for p, share, held in mine if name in held]
            if not senders or sum(s.count for _, s in senders) != senders[0][1].decode_count:
                ranks = ", ".join(str(p.topology.unique_rank) for p, _ in senders)
                found = f"{name} from ranks {ranks}" if ranks else f"{name} from no rank"
                change = "give every layer to exactly one pipeline stage"
                return [Misfit(field, found, f"{name} exactly once", change)]
    return []


def _series(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _layout_misfits(prefill: PeerDescription, decode: PeerDescription) -> list[Misfit]:
    ours, theirs = prefill.layout, decode.layout
    out = [
        Misfit(f"layout.{field}", str(p), str(d), SAME_MODEL)
        for field in ("page_size", "dtype", "total_kv_heads")
        if (p := getattr(ours, field)) != (d := getattr(theirs, field))
    ]
    if ours.attention is not theirs.attention:
        out.append(Misfit("layout.attention", ours.attention.value, theirs.attention.value, SAME_MODEL))
    return [*out, *_name_misfits(prefill, decode), *_item_misfits(prefill, decode)]


def _name_misfits(prefill: PeerDescription, decode: PeerDescription) -> list[Misfit]:
    """Layers are paired by their absolute ids; a decode rank of PP 1 has those of every prefill stage."""
    ours, theirs = ([b.name for b in side.layout.buffers] for side in (prefill, decode))
    only_ours = [name for name in ours if name not in theirs]
    same_stage = prefill.topology.pp_size == decode.topology.pp_size
    only_theirs = [name for name in theirs if name not in ours] if same_stage else []
    if not only_ours and not only_theirs:
        return []
    return [Misfit("layout.buffers", _names(ours, only_ours), _names(theirs, only_theirs), SAME_MODEL)]


def _names(names: list[str], alone: list[str]) -> str:
    return f"{len(names)} buffers" + (f", {len(alone)} only here, first {alone[0]}" if alone else "")


def _item_misfits(prefill: PeerDescription, decode: PeerDescription) -> list[Misfit]:
    """Compare bytes per page and unit, since between unequal TP sizes the items themselves differ."""
    if topology_misfits(prefill.topology, decode.topology, prefill.layout.units):
        return []
    counts = held_units(prefill.topology, decode.topology, prefill.layout.units)
    theirs = {b.name: b.item_len for b in decode.layout.buffers}
    pairs = [(b.name, b.item_len, theirs[b.name]) for b in prefill.layout.buffers if b.name in theirs]
    # Between equal counts items are copied whole; else a token's part must be cut into whole units.
    cuts = [1, 1] if counts[0] == counts[1] else [n * prefill.layout.page_size for n in counts]
    differing = [
        (name, p, d) for name, p, d in pairs if p % cuts[0] or d % cuts[1] or p * cuts[1] != d * cuts[0]
    ]
    if not differing:
        return []
    name, *sizes = differing[0]
    values = [
        f"{size} bytes" + ("" if counts[0] == counts[1] else f" of {count} heads")
        for size, count in zip(sizes, counts, strict=True)
    ]
    field = f"layout.item_len ({len(differing)} buffers, first {name})"
    return [Misfit(field, values[0], values[1], SAME_MODEL)]


def _state_misfits(prefill: tuple[StateComponent, ...], decode: tuple[StateComponent, ...]) -> list[Misfit]:
    ours, theirs = [c.kind for c in prefill], [c.kind for c in decode]
    if ours == theirs:
        return []
    change = "declare the same state components in the same order"
    return [Misfit("state components", str(ours), str(theirs), change)]


def chosen_aux_transport(prefill: PeerDescription, decode: PeerDescription) -> AuxTransport:
    """Return how aux rows travel between two that fit: the first of prefill's ways that decode takes too."""
    return next(way for way in prefill.aux_transports if way in decode.aux_transports)


def _aux_transport_misfits(
    prefill: tuple[AuxTransport, ...], decode: tuple[AuxTransport, ...]
) -> list[Misfit]:
    if set(prefill) & set(decode):
        return []
    ours, theirs = (" or ".join(way.value for way in side) for side in (prefill, decode))
    return [Misfit("aux transport", ours, theirs, "set transfer.aux alike on both sides")]


def _aux_misfits(prefill: AuxSchema | None, decode: AuxSchema | None) -> list[Misfit]:
    if prefill == decode:
        return []
    return [Misfit("aux schema", _fields(prefill), _fields(decode), "use the same AuxSchema on both sides")]


def aux_writer_misfits(schema: AuxSchema | None, aux_rank: int) -> tuple[Misfit, ...]:
    """Return the fields that another prefill rank fills than the one whose row is sent, ``aux_rank``."""
    return tuple(
        Misfit(
            f"aux field {field.name!r}",
            f"the row comes from rank {aux_rank}",
            f"rank {field.writer_rank} fills it",
            "have that rank fill all fields, and leave writer_rank None",
        )
        for field in (schema.fields if schema is not None else ())
        if field.writer_rank not in (None, aux_rank)
    )


def _fields(schema: AuxSchema | None) -> str:
    if schema is None:
        return "none"
    writers = ("" if f.writer_rank is None else f"@{f.writer_rank}" for f in schema.fields)
    texts = (f"{f.name}:{f.dtype}{list(f.shape)}{by}" for f, by in zip(schema.fields, writers, strict=True))
    return ", ".join(texts) or "no fields"
