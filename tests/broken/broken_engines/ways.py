"""The ways of being broken, by name."""

from __future__ import annotations

from collections.abc import Callable

from broken_engines import ends_process
from broken_engines.honest import Honest
from pdcore.engine import TransferEngine
from pdcore.model import Role

WAYS: dict[str, Callable[[Role], TransferEngine]] = {
    "not at all": Honest,
    "deadly": ends_process.Deadly,
    "exit later": ends_process.ExitLater,
    "hung connect": ends_process.HungConnect,
    "hung interpreter": ends_process.HungInterpreter,
}
