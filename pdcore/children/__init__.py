"""One harness for every child process: how it is started, told and asked, what it tells, and how it ends.

``child``    the parent's end
``parent``   the child's end
``messages`` what every child may say, whatever it is for
``printed``  what a child prints, passed on and kept
``process``  what nobody leaves behind
"""

from __future__ import annotations

from pdcore.children.child import Child, ChildError, heard
from pdcore.children.messages import Answer, Fatal, Gone, Question, QuestionFailed, Reply, decode_reply
from pdcore.children.parent import Parent, brief, run_child

__all__ = [
    "Answer",
    "Child",
    "ChildError",
    "Fatal",
    "Gone",
    "Parent",
    "Question",
    "QuestionFailed",
    "Reply",
    "brief",
    "decode_reply",
    "heard",
    "run_child",
]
