"""What a rank says of itself when it pairs."""

from __future__ import annotations

import attrs

from pdcore.host.process import ProcessIdentity
from pdcore.layout.aux_form import AuxForm
from pdcore.layout.aux_schema import AuxSchema
from pdcore.layout.kv import KVLayout, StateComponent
from pdcore.layout.staging import StagingLayout
from pdcore.model import AuxTransport, Incarnation, Role
from pdcore.pairing.topology import Topology

__all__ = ["PeerDescription"]


@attrs.frozen
class PeerDescription:
    """All that a peer must know before the first transfer.

    ``endpoint`` and ``regions`` are the engine's; ``protocol`` is the one it was started with.
    ``aux_transports`` are the ways that aux rows may travel, the preferred one first; ``verify`` says
    which pages are compared. ``process`` is the one that runs the engine, and ``engine_version`` names the
    engine's library and its version. It takes messages of ``max_message_bytes``; 0: not told.
    ``aux_form`` says where its aux data lies; None: in whole rows. ``staging`` are the slots that it has for
    packed bytes, in the last of its regions.
    """

    role: Role
    incarnation: Incarnation
    address: str
    version: str
    backend: str
    protocol: str
    topology: Topology
    layout: KVLayout
    state: tuple[StateComponent, ...]
    aux: AuxSchema | None
    aux_slots: int
    aux_transports: tuple[AuxTransport, ...]
    endpoint: bytes
    regions: bytes
    verify: str = "off"
    process: ProcessIdentity | None = None
    engine_version: str = ""
    max_message_bytes: int = 0
    aux_form: AuxForm | None = None
    staging: StagingLayout | None = None

    @property
    def aux_memory(self) -> AuxForm | None:
        """Where its aux data lies; None: it has none."""
        return self.aux_form or (None if self.aux is None else AuxForm.rows(self.aux))
