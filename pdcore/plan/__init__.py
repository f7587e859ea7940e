"""Pure numpy: items of both sides in, a :class:`~pdcore.regions.WriteBatch` out.

``runs`` merges neighbours, ``items`` plans KV pages, state slots and aux rows alike, ``split``
cuts a batch to what an engine takes. Nothing here does I/O or loops over pages, layers or entries.
"""

from pdcore.plan.items import ItemCopier
from pdcore.plan.runs import IndexArray, Runs, index_array, merge_runs
from pdcore.plan.split import join, slices, split_entries
from pdcore.plan.state import plan_state

__all__ = [
    "IndexArray",
    "ItemCopier",
    "Runs",
    "index_array",
    "join",
    "merge_runs",
    "plan_state",
    "slices",
    "split_entries",
]
