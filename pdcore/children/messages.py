"""What passes between a parent and any child, beside what is theirs alone: one JSON object per line."""

from __future__ import annotations

import signal
from typing import Any, Generic, TypeAlias, TypeVar, get_args

import attrs
import msgspec

__all__ = ["Answer", "Fatal", "Gone", "Question", "QuestionFailed", "Reply", "answer_type", "decode_reply"]

AnswerT = TypeVar("AnswerT")


class Question(msgspec.Struct, Generic[AnswerT], frozen=True, tag=True):
    """A command that is answered: ``class Digests(Question[list[str]])`` says with what."""


def answer_type(question: Question[AnswerT]) -> type[AnswerT]:
    """Return what a question is answered with."""
    base: Any = type(question).__orig_bases__[0]  # type: ignore[attr-defined]
    return get_args(base)[0]  # type: ignore[no-any-return]


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The answer to a question, as JSON."""

    value: msgspec.Raw


class QuestionFailed(msgspec.Struct, frozen=True, tag=True):
    """A question failed with an exception of the class ``error``; the child goes on."""

    error: str
    traceback: str


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The child cannot go on; it exits after this."""

    error: str


Reply: TypeAlias = Answer | QuestionFailed | Fatal
"""What a child tells that only answers questions."""

decode_reply = msgspec.json.Decoder[Reply](Reply).decode
"""The reply on a line."""


@attrs.frozen
class Gone:
    """The last event of every child: its process has ended, with ``status`` as ``subprocess`` counts."""

    pid: int
    status: int

    @property
    def how(self) -> str:
        """How it ended, in words that follow its name."""
        if self.status >= 0:
            return f"exited with {self.status}"
        number = -self.status
        known = {s.value for s in signal.Signals}
        return f"was ended by {signal.Signals(number).name if number in known else f'signal {number}'}"
