"""Recordings as JSON, a line for each stimulus: to be kept in a file, and to be read by eye."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

import attrs
import msgspec
import numpy as np

from pdcore.errors import ArgumentError, FailureCode, KVTransferError, Misfit
from pdcore.pairing.description import PeerDescription
from pdcore.plan import IndexArray
from pdcore.protocol import stimuli as s
from pdcore.protocol.history.log import Answer, LoggedStimulus, Recording
from pdcore.protocol.history.picture import Picture
from pdcore.protocol.machine import Settings
from pdcore.protocol.peer import Facts
from pdcore.wire import MESSAGE_KINDS, PairReply, Route

__all__ = ["read", "write"]

VERSION = 1


@attrs.frozen
class _Head:
    """The first line."""

    version: int
    missing: int
    ours: PeerDescription
    settings: Settings
    state: Picture


@attrs.frozen
class _WrittenLine:
    """Every other line: of what ``kind`` the stimulus is, or the message that came from ``route``."""

    number: int
    moment: float
    kind: str
    what: msgspec.Raw
    route: Route | None = None
    answers: tuple[tuple[str, msgspec.Raw], ...] = ()


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, KVTransferError):
        return [value.code.value, value.happened, value.there_is, value.to_do]
    raise NotImplementedError(type(value).__name__)


def _again(wanted: type, value: Any) -> object:
    if wanted is KVTransferError:
        code, *texts = value
        return KVTransferError(FailureCode(code), *texts)
    numbers: IndexArray = np.array(value, np.int64)
    return numbers


_STIMULI = {kind.__name__: kind for kind in get_args(s.Stimulus) if kind is not s.Heard}
_ANSWERS: dict[str, Any] = {"facts": Facts, "reply": PairReply, "misfits": tuple[Misfit, ...]}
_encode = msgspec.json.Encoder(enc_hook=_plain).encode
_decode_head = msgspec.json.Decoder(_Head).decode
_decode_line = msgspec.json.Decoder(_WrittenLine).decode
_DECODERS = {
    name: msgspec.json.Decoder(kind, dec_hook=_again)
    for name, kind in (*_STIMULI.items(), *((k.__name__, k) for k in MESSAGE_KINDS.values()))
}
_ANSWER_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in _ANSWERS.items()}


def write(recording: Recording) -> Iterator[bytes]:
    """Yield the lines of a recording."""
    told = recording
    yield _encode(_Head(VERSION, told.missing, told.ours, told.settings, told.state)) + b"\n"
    for entry in recording.entries:
        yield _encode(_line(entry)) + b"\n"


def read(lines: Iterable[bytes]) -> Recording:
    """Return the recording that was written.

    Raises:
        ArgumentError: these are not the lines of one, or of another version of pdcore.
    """
    head, entries, at = None, [], 0
    try:
        for at, line in enumerate(lines, 1):  # noqa: B007
            if head is None:
                head = _decode_head(line)
            else:
                entries.append(_entry(_decode_line(line)))
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError) as error:
        raise _no_recording(f"line {at}: {error!r}") from error
    if head is None or head.version != VERSION:
        raise _no_recording("it is empty" if head is None else f"version {head.version}, here {VERSION}")
    return Recording(head.ours, head.settings, tuple(entries), head.missing, head.state)


def _no_recording(there_is: str) -> ArgumentError:
    to_do = "hand in what was written by the same version of pdcore"
    return ArgumentError("this is no recording of pdcore", there_is, to_do)


def _line(entry: LoggedStimulus) -> _WrittenLine:
    number, moment, stimulus, answers = entry
    route, what = (stimulus.route, stimulus.message) if isinstance(stimulus, s.Heard) else (None, stimulus)
    told = tuple((_name_of(answer), msgspec.Raw(_encode(answer))) for answer in answers)
    return _WrittenLine(number, moment, type(what).__name__, msgspec.Raw(_encode(what)), route, told)


def _entry(line: _WrittenLine) -> LoggedStimulus:
    what = _DECODERS[line.kind].decode(line.what)
    stimulus = what if line.route is None else s.Heard(line.route, what)
    answers = tuple(_ANSWER_DECODERS[name].decode(answer) for name, answer in line.answers)
    return LoggedStimulus(line.number, line.moment, stimulus, answers)


def _name_of(answer: Answer) -> str:
    if isinstance(answer, Facts):
        return "facts"
    return "reply" if isinstance(answer, PairReply) else "misfits"
