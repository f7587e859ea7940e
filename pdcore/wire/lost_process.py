"""What ranks ask each other about a lost process: only who lives beside it can see that it has ended."""

from __future__ import annotations

import attrs

from pdcore.host.process import ProcessIdentity

__all__ = ["LifeAnswer", "LifeQuestion"]


@attrs.frozen
class LifeQuestion:
    """Has this process of your machine ended, and its kernel sent all that it was given?"""

    process: ProcessIdentity


@attrs.frozen
class LifeAnswer:
    """``ended``: it has, for certain, and has nothing more to send."""

    process: ProcessIdentity
    ended: bool
