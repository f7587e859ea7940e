"""Fault injection: an engine and a control channel that misbehave as a seed says, and managers among them.

``python -m pdcore.testing.faults --seed N`` replays a schedule: two managers, random operations, random
faults, and the invariants of ``docs/INVARIANTS.md`` looked at after every step.
"""

from pdcore.testing.faults.channel import FaultyChannel
from pdcore.testing.faults.engine import FaultyEngine
from pdcore.testing.faults.schedule import Decision, Fault, Schedule

__all__ = ["Decision", "Fault", "FaultyChannel", "FaultyEngine", "Schedule"]
