"""The same stimuli to a fresh machine: the same actions, and in the end the same state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import attrs

from pdcore.errors import RoomError
from pdcore.protocol import stimuli as s
from pdcore.protocol.actions import Action
from pdcore.protocol.history.log import Answer, LoggedStimulus, Recording
from pdcore.protocol.machine import Machine
from pdcore.protocol.peer import Facts, Fit

__all__ = ["Replay", "Step"]


@attrs.frozen(eq=False)
class Step:
    """One stimulus: what the machine wanted done, or what it raised."""

    entry: LoggedStimulus
    actions: tuple[Action, ...] = ()
    raised: Exception | None = None


class Replay:
    """Feeds the ``machine``, made as the recorded one was, with what that was fed with."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._answers: deque[Answer] = deque()
        fit = Fit(self._answer, self._answer, self._answer)
        self.machine = Machine(recording.ours, fit, recording.settings)

    def run(self) -> Machine:
        """Feed it all; return it."""
        for _ in self.steps():
            pass
        return self.machine

    def steps(self) -> Iterator[Step]:
        """Feed it one entry after the other."""
        for entry in self._recording.entries:
            self._answers = deque(entry.answers)
            self._know_group(entry.stimulus)
            try:
                actions = self.machine.handle(entry.stimulus, entry.moment)
            except RoomError as error:
                yield Step(entry, raised=error)
            except Exception as error:  # what it raises is what somebody looks for
                yield Step(entry, tuple(self.machine.recover(entry.stimulus, error)), error)
            else:
                yield Step(entry, tuple(actions))

    def _answer(self, _: object) -> Any:
        """Say what was said then; of a peer that was turned away there it may be nothing."""
        return self._answers.popleft() if self._answers else Facts()

    def _know_group(self, stimulus: s.Stimulus) -> None:
        """The room that looked for a group may be gone from the log: the group is there all the same."""
        if self._recording.missing and isinstance(stimulus, s.GroupFound | s.GroupFailed):
            self.machine.peers.group(stimulus.key)
