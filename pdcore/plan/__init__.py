"""Pure numpy: items of both sides in, a :class:`~pdcore.contract.regions.WriteBatch` out.

``kv`` plans the pages of a request, ``state`` what is beside them and ``aux`` its values; the first two
with ``items`` (whole items, neighbours merged by ``runs``) or with ``pieces`` (of items that the two sides
cut differently); ``batches`` cuts one to what an engine takes. Nothing here does I/O or loops over pages,
layers or entries.
"""

from pdcore.plan.aux import AuxCopier
from pdcore.plan.batches import Slicer, join, slices, split_entries
from pdcore.plan.indices import IndexArray, check_lists, index_array
from pdcore.plan.items import ItemCopier
from pdcore.plan.kv import KVCopier
from pdcore.plan.pieces import PieceCopier, Pieces
from pdcore.plan.runs import Runs, merge_runs, spread
from pdcore.plan.state import plan_state

__all__ = [
    "AuxCopier",
    "IndexArray",
    "ItemCopier",
    "KVCopier",
    "PieceCopier",
    "Pieces",
    "Runs",
    "Slicer",
    "check_lists",
    "index_array",
    "join",
    "merge_runs",
    "plan_state",
    "slices",
    "split_entries",
    "spread",
]
