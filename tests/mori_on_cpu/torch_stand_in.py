"""torch, as far as MORI touches it here: ``mori.io`` imports it for the name of its tensor class.

The build puts this beside MORI as ``torch``. The real wheel would be a download of half a gigabyte.
"""

from __future__ import annotations


class Tensor:
    """No tensor is ever made of it."""
