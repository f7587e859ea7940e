"""Engines that copy something else than they were told."""

from __future__ import annotations

import attrs
import numpy as np

from broken_engines.honest import Honest
from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Finished, Transfer
from pdcore.contract.regions import WriteBatch
from pdcore.plan.batches import join, slices

EIGHTS = ~np.uint64(7)
MANY = 1000


class Wrong(Honest):
    """Copies the batch that ``change`` makes of each."""

    def change(self, batch: WriteBatch) -> WriteBatch:
        return batch

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        changed = self.change(batch)
        return super().do_write(peer, changed) if len(changed) else Finished()


class RoundsTargets(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        return attrs.evolve(batch, remote_offsets=batch.remote_offsets & EIGHTS)


class RoundsSources(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        return attrs.evolve(batch, local_offsets=batch.local_offsets & EIGHTS)


class RoundsLengths(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        return attrs.evolve(batch, lengths=np.maximum(batch.lengths & EIGHTS, np.uint64(1)))


class RoundsInLaterRegions(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        later = np.repeat(batch.remote_regions > 0, np.diff(batch.starts))
        rounded = np.where(later, batch.remote_offsets & EIGHTS, batch.remote_offsets)
        return attrs.evolve(batch, remote_offsets=rounded)


class SwapsEndsOfManyEntries(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        offsets = batch.remote_offsets.copy()
        if len(batch) > MANY:
            offsets[[0, -1]] = offsets[[-1, 0]]
        return attrs.evolve(batch, remote_offsets=offsets)


class PastRegion(Wrong):
    """Copies one byte more than it was told to where a region ends."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        limits = np.repeat(peer.region_lengths[batch.remote_regions], np.diff(batch.starts))
        at_end = (batch.remote_offsets + batch.lengths == limits).astype(np.uint64)
        return super().do_write(peer, attrs.evolve(batch, lengths=batch.lengths + at_end))


class LosesLastOfMany(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        return next(slices(batch, len(batch) - 1)) if len(batch) > MANY else batch


class LosesFirst(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        return join(list(slices(batch, 1))[1:]) if 1 < len(batch) < MANY else batch


class LosesBeyond(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        return next(slices(batch, 65_536)) if len(batch) > 65_536 else batch


class CutsLong(Wrong):
    def change(self, batch: WriteBatch) -> WriteBatch:
        return attrs.evolve(batch, lengths=np.minimum(batch.lengths, np.uint64(32 << 20)))


class ChangesTheBatch(Wrong):
    """Makes addresses of the offsets in place."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        np.add(batch.local_offsets, np.uint64(4096), out=batch.local_offsets)
        return transfer
