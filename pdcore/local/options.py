"""What a user can set on the embedded backend."""

from __future__ import annotations

import attrs

__all__ = ["LocalOptions"]


@attrs.frozen
class LocalOptions:
    """``copy_threads`` = 0: the thread that calls ``write`` copies, and ``write`` is synchronous.

    1 or more: that many threads of the engine copy, and ``write`` returns at once.
    """

    copy_threads: int = attrs.field(
        default=0,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(0), attrs.validators.le(64)],
    )
