"""Whether the groups and the model of a run fit together: what pairing would say, before a process starts."""

from __future__ import annotations

from pdcore import __version__
from pdcore.demo.content.expected import AUX_SCHEMA
from pdcore.demo.content.models import ModelShape
from pdcore.demo.content.slabs import kv_slabs, state_slabs
from pdcore.demo.planning.groups import Groups
from pdcore.errors import IncompatiblePeerError, Misfit
from pdcore.model import AuxTransport, Incarnation, Role
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import coverage_misfits, pairing_misfits
from pdcore.pairing.topology import Topology, map_ranks, topology_misfits

__all__ = ["refuse_misfits"]


def refuse_misfits(model: ModelShape, page_size: int, groups: Groups) -> None:
    """Check that every decode rank gets all of the model from the prefill ranks.

    Raises:
        IncompatiblePeerError: it does not; every misfit is listed, as pairing would.
        ShapeError: a rank has no part of the model, or one that the demo cannot fill.
    """
    replicas = {role: groups.replicas(role)[0] for role in Role}
    for rank in (*replicas[Role.PREFILL], *replicas[Role.DECODE]):
        kv_slabs(model, page_size, rank)
        state_slabs(model, page_size, rank)
    prefills = [_described(Role.PREFILL, model, page_size, rank) for rank in replicas[Role.PREFILL]]
    misfits: dict[Misfit, None] = {}
    for rank in replicas[Role.DECODE]:
        misfits |= dict.fromkeys(_misfits(prefills, _described(Role.DECODE, model, page_size, rank)))
    if misfits:
        raise IncompatiblePeerError("the decode group", tuple(misfits))


def _misfits(prefills: list[PeerDescription], decode: PeerDescription) -> tuple[Misfit, ...]:
    theirs, units = prefills[0].topology, decode.layout.units
    if misfits := topology_misfits(theirs, decode.topology, *units):
        return misfits
    sharded = any(component.sharded for component in decode.state)
    wanted = map_ranks(theirs, decode.topology, *units, sharded_state=sharded).prefill_ranks
    senders = [prefills[rank] for rank in wanted]
    found = [misfit for prefill in senders for misfit in pairing_misfits(prefill, decode)]
    return tuple(found) or coverage_misfits(senders, decode)


def _described(role: Role, model: ModelShape, page_size: int, rank: Topology) -> PeerDescription:
    return PeerDescription(
        role=role,
        incarnation=Incarnation(""),
        address=role.value,
        version=__version__,
        backend="",
        protocol="",
        topology=rank,
        layout=model.layout(page_size, 1, rank),
        state=model.components(page_size, 1, 1, rank),
        aux=AUX_SCHEMA,
        aux_slots=1,
        aux_transports=(AuxTransport.TCP,),
        endpoint=b"",
        regions=b"",
    )
