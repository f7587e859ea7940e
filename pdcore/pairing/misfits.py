"""Whether a prefill and a decode rank fit together. Pure: two descriptions in, misfits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdcore.errors import Misfit
from pdcore.layout.aux_schema import AuxSchema
from pdcore.layout.fingerprint import fingerprint_misfits
from pdcore.layout.kv import KVBuffer, StateComponent
from pdcore.layout.staging import packs
from pdcore.model import AuxTransport
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.sharding import shared_units
from pdcore.pairing.topology import Share, held_units, kv_share, state_share, topology_misfits

__all__ = ["chosen_aux_transport", "coverage_misfits", "pairing_misfits"]

SAME_MODEL = "serve the same model with the same cache settings on both sides"
SAME_ORDER = "keep the pages in one order on both sides: pdcore copies what lies there and converts nothing"
SAME_SIZES = (
    f"{SAME_MODEL}; where a layer has other KV heads than total_kv_heads, or each rank holds all of it, "
    "say so with KVBuffer(units=...)"
)


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
        *fingerprint_misfits(prefill.layout.fingerprint, decode.layout.fingerprint),
        *_aux_transport_misfits(prefill.aux_transports, decode.aux_transports),
        *topology_misfits(prefill.topology, decode.topology, *prefill.layout.units),
        *_layout_misfits(prefill, decode),
        *_state_misfits(prefill.state, decode.state),
        *_aux_misfits(prefill, decode),
        *_staging_misfits(prefill, decode),
    )


def coverage_misfits(prefills: Sequence[PeerDescription], decode: PeerDescription) -> tuple[Misfit, ...]:
    """Return what a decode rank would not get exactly once from the prefill ranks that send to it.

    ``prefills`` describe the ``prefill_ranks`` of its mapping. Each pair of them is known to fit; this
    finds a layer that no pipeline stage holds, or two do. Decode alone sees all stages, so it decides.
    """
    offers = [(p, _kv_shares(p, decode)) for p in prefills]
    out = _coverage("layout.buffers", [b.name for b in decode.layout.buffers], offers)
    for index, component in enumerate(decode.state):
        held = [(p, _state_shares(p, decode, p.state[index])) for p in prefills]
        out += _coverage(f"state {component.kind!r}", [b.name for b in component.buffers], held)
    return tuple(out)


def _state_shares(
    prefill: PeerDescription, decode: PeerDescription, component: StateComponent
) -> Mapping[str, Share]:
    """Return what a prefill rank sends of each buffer of its component, by name."""
    groups = prefill.topology, decode.topology
    units = {b.name: b.units_between(groups[0].tp_size, groups[1].tp_size) for b in component.buffers}
    return {
        name: share for name, count in units.items() if (share := state_share(*groups, count)) is not None
    }


def _kv_shares(prefill: PeerDescription, decode: PeerDescription) -> Mapping[str, Share]:
    """Return what a prefill rank sends of each buffer, by name; those that it does not send are missing."""
    units = shared_units(prefill.topology, decode.topology, prefill.layout, decode.layout)
    shares = {count: kv_share(prefill.topology, decode.topology, count) for count in set(units.values())}
    return {name: share for name, count in units.items() if (share := shares[count]) is not None}


def _coverage(
    field: str, names: Sequence[str], offers: Sequence[tuple[PeerDescription, Mapping[str, Share]]]
) -> list[Misfit]:
    for cp_rank in sorted({p.topology.cp_rank for p, shares in offers if shares}) or [0]:
        mine = [offer for offer in offers if offer[0].topology.cp_rank == cp_rank]
        for name in names:
            senders = [(p, shares[name]) for p, shares in mine if name in shares]
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
        for field in ("page_size", "dtype", "value_bits", "total_kv_heads")
        if (p := getattr(ours, field)) != (d := getattr(theirs, field))
    ]
    if ours.attention is not theirs.attention:
        out.append(Misfit("layout.attention", ours.attention.value, theirs.attention.value, SAME_MODEL))
    out += _name_misfits(prefill, decode)
    there = {b.name: b for b in theirs.buffers}
    pairs = [(b, there[b.name]) for b in ours.buffers if b.name in there]
    orders = [
        (a.name, str(p), str(d)) for a, b in pairs if (p := ours.order_of(a)) is not (d := theirs.order_of(b))
    ]
    out += _first_of("order", orders, SAME_ORDER)
    # The layouts' own total_kv_heads have been compared.
    units = [
        (a.name, f"{ours.units_of(a)} units", f"{theirs.units_of(b)} units")
        for a, b in pairs
        if ours.units_of(a) != theirs.units_of(b) and (a.units, b.units) != (None, None)
    ]
    out += _first_of("units", units, SAME_MODEL)
    return out if units or orders else [*out, *_item_misfits(prefill, decode, pairs)]


def _first_of(field: str, differing: Sequence[tuple[str, str, str]], change: str) -> list[Misfit]:
    """Return the misfit of a field of some buffers: the first with its values, and how many there are."""
    if not differing:
        return []
    name, here, there = differing[0]
    return [Misfit(f"layout.{field} ({len(differing)} buffers, first {name})", here, there, change)]


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


def _item_misfits(
    prefill: PeerDescription, decode: PeerDescription, pairs: Sequence[tuple[KVBuffer, KVBuffer]]
) -> list[Misfit]:
    """Compare bytes per page and unit, since between unequal TP sizes the items themselves differ."""
    ours, theirs = prefill.layout, decode.layout
    groups = prefill.topology, decode.topology
    if topology_misfits(*groups, *ours.units):
        return []
    good = shared_units(*groups, ours, theirs)
    differing = []
    for a, b in pairs:
        if a.name not in good:
            counts = held_units(*groups, ours.units_of(a))
            heads = [f" of {n} heads" if counts[0] != counts[1] else "" for n in counts]
            differing.append((a.name, f"{a.item_len} bytes{heads[0]}", f"{b.item_len} bytes{heads[1]}"))
    cut = len(set(held_units(*groups, max(ours.units)))) > 1
    return _first_of("item_len", differing, SAME_SIZES if cut else SAME_MODEL)


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


def _aux_misfits(prefill: PeerDescription, decode: PeerDescription) -> list[Misfit]:
    """Compare the fields; where they lie is each side's own affair, as long as there is room for them."""
    if prefill.aux != decode.aux:
        change = "use the same AuxSchema on both sides"
        return [Misfit("aux schema", _fields(prefill.aux), _fields(decode.aux), change)]
    ours, theirs = (p.aux_form.misfit(p.aux or AuxSchema()) if p.aux_form else "" for p in (prefill, decode))
    if not ours and not theirs:
        return []
    change = "report it: a form of aux data contradicts its schema"
    return [Misfit("aux form", ours or "good", theirs or "good", change)]


def _staging_misfits(prefill: PeerDescription, decode: PeerDescription) -> list[Misfit]:
    """A side that takes or gives bytes only packed needs another that has slots for them."""
    ours, theirs = (p.staging for p in (prefill, decode))
    if not packs(ours, theirs) or (ours is not None and theirs is not None):
        return []
    here, there = ("none" if staging is None else "always" for staging in (ours, theirs))
    return [Misfit("transfer.staging", here, there, "set transfer.staging = 'always' on both sides")]


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
