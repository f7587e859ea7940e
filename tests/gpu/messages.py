"""What the checks ask of a worker: a prefill or a decode rank in a process of its own, with its own pools."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from pdcore.children import Question

Dtype: TypeAlias = Literal["bfloat16", "float8_e4m3fn"]


class WorkerSpec(msgspec.Struct, frozen=True):
    """What a worker is: ``device`` is torch's name of where its pools lie; ``bootstrap`` is for prefill."""

    role: Literal["prefill", "decode"]
    backend: str
    device: str
    dtype: Dtype
    bootstrap: str
    verify: Literal["off", "sample", "all"] = "off"


class Seen(msgspec.Struct, frozen=True):
    """What a look found, by kernels alone: pages that differ from what they should be, and others that are
    not as they were before."""

    wrong: int
    touched: int


class Ended(msgspec.Struct, frozen=True):
    """How a room ended, and whether its pages are free."""

    status: str
    failure: str
    safe: bool
    because: str


class Started(Question[str], frozen=True):
    """The transport, once the manager runs."""


class Fill(Question[None], frozen=True):
    """Fill pages, and wait for it."""

    seed: int
    pages: list[int]


class FillLater(Question[None], frozen=True):
    """Have a kernel fill pages that waits in its queue: until ``OpenGate``, or behind a long kernel."""

    seed: int
    pages: list[int]
    behind: Literal["gate", "kernel"]


class OpenGate(Question[None], frozen=True):
    """Let the queue go on, and wait until it is empty."""


class Send(Question[None], frozen=True):
    """Send pages; with ``ready`` not before what was queued last has ended."""

    room: int
    pages: list[int]
    token: int
    ready: bool = False


class Receive(Question[None], frozen=True):
    """Receive into pages."""

    room: int
    pages: list[int]
    bootstrap: str


class Wait(Question[Ended], frozen=True):
    """Wait for a room's end."""

    room: int


class State(Question[str], frozen=True):
    """A room's state now."""

    room: int


class Look(Question[Seen], frozen=True):
    """Look at pages, by kernels that are launched now: they should be what these source pages were filled
    with. The others should be as they were when the worker began."""

    seed: int
    sources: list[int]
    pages: list[int]


class Token(Question[int], frozen=True):
    """The aux value that came with a room."""

    room: int


class Clear(Question[None], frozen=True):
    """Forget a room."""

    room: int


Command: TypeAlias = (
    Started | Fill | FillLater | OpenGate | Send | Receive | Wait | State | Look | Token | Clear
)
decode_command = msgspec.json.Decoder[Command](Command).decode
