from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import attrs
import msgspec
import numpy as np
import pytest
from wire_samples import DESCRIPTION, FAILURE, LIFE, METADATA, SAMPLES

from pdcore.errors import WireError
from pdcore.model import Generation, KVPoll, RoomId
from pdcore.wire import (
    MESSAGE_KINDS,
    SCHEMA_VERSION,
    Codec,
    Heartbeat,
    Message,
    PairReply,
    RequestMetadata,
    RoomStatus,
)

GOLDEN = Path(__file__).parents[1] / "golden"
HEADER = struct.Struct(">4sHHH")


@attrs.frozen
class Received:
    """A frame as ZMQ hands it in."""

    buffer: memoryview


def received(frames: list[bytes | memoryview]) -> list[Received]:
    return [Received(memoryview(frame)) for frame in frames]


def decoded(*frames: bytes | memoryview) -> Message:
    return Codec().decode(received(list(frames)))


def refusal(*frames: bytes | memoryview) -> WireError:
    with pytest.raises(WireError) as caught:
        decoded(*frames)
    assert caught.value.to_do
    return caught.value


def packed(kind: int, body: object, critical: str = "", *, magic: bytes = b"PDKV", schema: int = 1) -> bytes:
    names = critical.encode()
    return HEADER.pack(magic, schema, kind, len(names)) + names + msgspec.msgpack.encode(body)


def as_data(message: Message) -> object:
    """Return a message as plain data: numpy arrays don't compare as a whole."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return (value.dtype.str, value.tolist())
        if isinstance(value, tuple):
            return tuple(plain(item) for item in value)
        return value

    return type(message), {f.name: plain(getattr(message, f.name)) for f in attrs.fields(type(message))}


def metadata(pages: object = 1, states: object = (), room: int = 5) -> dict[str, object]:
    return {
        "room": room,
        "generation": 1,
        "pages": pages,
        "aux_index": None,
        "state_indices": states,
        "decode_prefix_len": 0,
        "remaining": 1.0,
    }


PAGES = np.array([4, 5], "<i8").tobytes()

# What stands on the wire


def test_there_is_a_sample_of_every_kind_and_kinds_keep_their_numbers() -> None:
    assert {kind: cls.__name__ for kind, cls in MESSAGE_KINDS.items()} == {
        1: "PairRequest",
        2: "PairReply",
        3: "RequestMetadata",
        4: "AuxRow",
        5: "RoomStatus",
        6: "Abort",
        7: "Released",
        8: "Heartbeat",
        9: "Bye",
        10: "Digests",
        11: "Verdict",
        12: "Opened",
        13: "Inquiry",
        14: "Standing",
        16: "LifeQuestion",
        17: "LifeAnswer",
        18: "Packed",
        19: "Unpacked",
        20: "Quiet",
    }
    assert set(SAMPLES) == {cls.__name__ for cls in MESSAGE_KINDS.values()}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_message_has_its_golden_bytes(name: str) -> None:
    golden = (GOLDEN / f"{name}.hex").read_text().splitlines()
    assert [bytes(frame).hex() for frame in Codec.encode(SAMPLES[name])] == golden


@pytest.mark.parametrize("name", SAMPLES)
def test_the_golden_bytes_are_read_as_the_message(name: str) -> None:
    frames = [bytes.fromhex(line) for line in (GOLDEN / f"{name}.hex").read_text().splitlines()]
    assert as_data(decoded(*frames)) == as_data(SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_message_comes_back_as_it_was(name: str) -> None:
    assert as_data(decoded(*Codec.encode(SAMPLES[name]))) == as_data(SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_header_is_magic_schema_kind_and_critical_length(name: str) -> None:
    magic, schema, kind, critical = HEADER.unpack_from(Codec.encode(SAMPLES[name])[0])
    assert (magic, schema, critical) == (b"PDKV", SCHEMA_VERSION, 0)
    assert MESSAGE_KINDS[kind].__name__ == name


def test_optional_parts_may_be_missing() -> None:
    status = RoomStatus(RoomId(1), Generation(1), 0, KVPoll.SUCCESS, drained=True)
    assert decoded(*Codec.encode(status)) == status
    reply = PairReply(DESCRIPTION)
    assert decoded(*Codec.encode(reply)) == reply


def test_metadata_of_a_peer_that_knows_no_trace_is_read() -> None:
    older = Codec.encode(METADATA)
    header, body = bytes(older[0])[: HEADER.size], msgspec.msgpack.decode(bytes(older[0])[HEADER.size :])
    del body["trace"]
    read = decoded(header + msgspec.msgpack.encode(body), *older[1:])
    assert as_data(read) == as_data(attrs.evolve(METADATA, trace=None))


def test_a_failure_becomes_the_same_error_on_the_other_side() -> None:
    error = FAILURE.error()
    assert (error.code, error.happened) == (FAILURE.code, FAILURE.happened)
    assert type(FAILURE).of(error) == FAILURE


# Arrays


def test_arrays_are_encoded_without_a_copy() -> None:
    pages = np.arange(1000)
    message = attrs.evolve(METADATA, pages=pages, state_indices=())
    frame = Codec.encode(message)[1]
    assert np.shares_memory(np.frombuffer(frame, np.int64), pages)


def test_arrays_are_decoded_without_a_copy() -> None:
    pages = np.arange(1000)
    frames = [bytes(frame) for frame in Codec.encode(attrs.evolve(METADATA, pages=pages))]
    message = decoded(*frames)
    assert isinstance(message, RequestMetadata)
    assert np.shares_memory(message.pages, np.frombuffer(frames[1], np.int64))
    assert message.pages.tolist() == pages.tolist()


def test_a_strided_array_arrives_whole() -> None:
    message = attrs.evolve(METADATA, pages=np.arange(10)[::-3])
    again = decoded(*Codec.encode(message))
    assert isinstance(again, RequestMetadata)
    assert again.pages.tolist() == [9, 6, 3, 0]


# Other versions


def test_unknown_fields_are_ignored() -> None:
    body = {"incarnation": LIFE, "mood": {"good": [1, 2, 3]}}
    assert decoded(packed(8, body)) == Heartbeat(LIFE)


def test_unknown_frames_are_ignored() -> None:
    assert decoded(packed(8, {"incarnation": LIFE}), b"some", b"more") == Heartbeat(LIFE)


def test_an_unknown_critical_field_is_refused_by_name() -> None:
    body = {"incarnation": LIFE, "mood": "bad"}
    error = refusal(packed(8, body, critical="incarnation,mood"))
    assert error.happened == "a Heartbeat message needs fields that this pdcore does not know"
    assert error.there_is == "critical fields mood"
    assert error.to_do == "upgrade pdcore on this side"


def test_known_critical_fields_are_fine() -> None:
    frames = Codec.encode(Heartbeat(LIFE), critical=["incarnation"])
    assert frames[0] == packed(8, {"incarnation": LIFE}, critical="incarnation")
    assert decoded(*frames) == Heartbeat(LIFE)


@pytest.mark.parametrize(
    ("frame", "there_is"),
    [
        (packed(8, {}, magic=b"HTTP"), "magic b'HTTP', schema 1 (here 1), kind 8"),
        (packed(8, {}, schema=2), "magic b'PDKV', schema 2 (here 1), kind 8"),
        (packed(99, {}), "magic b'PDKV', schema 1 (here 1), kind 99"),
        (packed(0, {}), "magic b'PDKV', schema 1 (here 1), kind 0"),
    ],
)
def test_what_is_not_of_this_protocol_is_refused(frame: bytes, there_is: str) -> None:
    error = refusal(frame)
    assert error.happened == "a control message is not of this protocol"
    assert error.there_is == there_is
    assert error.to_do.startswith("run matching pdcore versions on both sides")


# Garbage


@pytest.mark.parametrize(
    ("frames", "there_is"),
    [
        ([], "0 frames, the first of 0 bytes"),
        ([b""], "1 frames, the first of 0 bytes"),
        ([b"PDKV\0\1\0\x08\0"], "1 frames, the first of 9 bytes"),
        ([b"PDKV" * 4] * 65, "65 frames, the first of 16 bytes"),
    ],
)
def test_a_message_of_the_wrong_shape_is_refused(frames: list[bytes], there_is: str) -> None:
    error = refusal(*frames)
    assert (error.happened, error.there_is) == ("a control message has the wrong shape", there_is)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_of_every_message_is_a_wire_error(name: str) -> None:
    first, *arrays = Codec.encode(SAMPLES[name])
    for length in range(len(first)):
        refusal(first[:length], *arrays)


def test_a_critical_length_beyond_the_frame_is_refused() -> None:
    frame = bytearray(packed(8, {"incarnation": LIFE}))
    frame[8:10] = b"\xff\xff"
    assert "critical fields" in refusal(bytes(frame)).there_is


@pytest.mark.parametrize(
    ("body", "there_is"),
    [
        (b"", "Input data was truncated"),
        (b"\xc1", "invalid opcode"),
        (b"\x90", "Expected `object`, got `array`"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (b"\x81\xa4mood\xdd\xff\xff\xff\xff", "truncated"),
        (b"\x81\xabincarnation\xdb\xff\xff\xff\xff", "truncated"),
        (b"\x81\xabincarnation\x07", "Expected `str`, got `int` - at `$.incarnation`"),
        (b"\x81\xa4mood" + b"\x91" * 100_000, ""),
        (b"\x80", "missing required field `incarnation`"),
        (msgspec.msgpack.encode({"incarnation": LIFE}) + b"\x80", "trailing characters"),
    ],
)
def test_a_malformed_body_is_refused_with_the_place(body: bytes, there_is: str) -> None:
    error = refusal(HEADER.pack(b"PDKV", 1, 8, 0) + body)
    assert error.happened == "a Heartbeat message is malformed"
    assert there_is in error.there_is


@pytest.mark.parametrize("reference", [0, -1, 2, 2**63, 2**64 - 1, "1", None, 1.0, [1]])
def test_a_reference_to_a_frame_that_does_not_exist_is_refused(reference: object) -> None:
    error = refusal(packed(3, metadata(pages=reference)), PAGES)
    assert error.happened == "a RequestMetadata message is malformed"
    assert "does not exist" in error.there_is


def test_a_bad_reference_among_the_state_lists_is_refused() -> None:
    assert "does not exist" in refusal(packed(3, metadata(states=[1, 7])), PAGES).there_is


def test_an_array_frame_with_a_broken_number_is_refused() -> None:
    assert "multiple of element size" in refusal(packed(3, metadata()), PAGES[:-1]).there_is


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("PairRequest", ("description", "topology", "tp_size"), 0),
        ("PairRequest", ("description", "layout", "page_size"), -3),
        ("PairRequest", ("description", "layout", "dtype"), ""),
        ("PairRequest", ("description", "layout", "buffers"), []),
        ("PairRequest", ("description", "layout", "order"), "sideways"),
        ("PairRequest", ("description", "layout", "element_bits"), 0),
        (
            "PairRequest",
            ("description", "layout", "buffers"),
            [{"layer": 0, "part": "k", "item_len": 4, "units": 0}],
        ),
        ("PairRequest", ("description", "role"), "router"),
        ("PairRequest", ("description", "aux", "fields"), [{"name": "a", "dtype": "object"}]),
        ("PairReply", ("failure", "code"), "bored"),
        ("RoomStatus", ("status",), 9),
        ("RoomStatus", ("room",), "5"),
        ("RoomStatus", ("room",), None),
        ("Bye", ("drained",), 2),
    ],
)
def test_a_value_out_of_its_range_is_a_wire_error(name: str, path: tuple[str, ...], value: object) -> None:
    frames = Codec.encode(SAMPLES[name])
    body = msgspec.msgpack.decode(frames[0][HEADER.size :])
    place = body
    for key in path[:-1]:
        place = place[key]
    assert path[-1] in place
    place[path[-1]] = value
    error = refusal(bytes(frames[0][: HEADER.size]) + msgspec.msgpack.encode(body), *frames[1:])
    assert error.happened == f"a {name} message is malformed"


def test_a_codec_goes_on_after_a_malformed_message() -> None:
    codec = Codec()
    attempts: list[Callable[[], Message]] = [
        lambda: codec.decode(received([packed(3, metadata(pages=3)), PAGES])),
        lambda: codec.decode(received([packed(8, {})])),
    ]
    for attempt in attempts:
        with pytest.raises(WireError):
            attempt()
    assert codec.decode(received([packed(8, {"incarnation": LIFE})])) == Heartbeat(LIFE)


def test_only_messages_are_encoded() -> None:
    with pytest.raises(KeyError):
        Codec.encode("a string")  # type: ignore[arg-type]  # on purpose
