"""Frames in pieces: every size comes back, and what no splitter makes is refused."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdcore.errors import WireError
from pdcore.wire.pieces import PIECE_BYTES, join, split

SIZES = st.sampled_from([0, 1, 100, *(n * PIECE_BYTES + more for n in (1, 2, 3) for more in (-1, 0, 1))])
RANDOM = np.random.default_rng(7).bytes(4 * PIECE_BYTES)


@attrs.frozen
class Received:
    """A frame as ZMQ hands it in."""

    buffer: memoryview

    def __len__(self) -> int:
        return len(self.buffer)


def received(*pieces: bytes | memoryview) -> list[Received]:
    return [Received(memoryview(bytes(piece))) for piece in pieces]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, st.integers(0, 64)), max_size=6))
def test_frames_of_any_size_come_back_as_they_were(shapes: list[tuple[int, int]]) -> None:
    frames: list[bytes | memoryview] = [RANDOM[start : start + size] for size, start in shapes]
    pieces = split(frames)
    assert all(len(piece) <= PIECE_BYTES for piece in pieces)
    assert [bytes(frame.buffer) for frame in join(received(*pieces))] == frames


def test_small_frames_are_passed_on_without_a_copy() -> None:
    array = np.arange(1000)
    pieces = split([b"head", array.data.cast("B")])
    assert np.shares_memory(np.frombuffer(pieces[1], np.int64), array)
    frames = received(b"head", bytes(PIECE_BYTES - 1))
    assert join(frames) == frames


def test_pieces_of_a_large_frame_are_views_of_it() -> None:
    array = np.zeros(PIECE_BYTES, np.int64)
    assert all(
        np.shares_memory(np.frombuffer(p, np.uint8), array) for p in split([array.data.cast("B")])[:-1]
    )


@pytest.mark.parametrize(
    ("sizes", "there_is"),
    [
        ([PIECE_BYTES], f"1 pieces, the largest of {PIECE_BYTES} bytes, the last of {PIECE_BYTES}"),
        (
            [1, PIECE_BYTES, PIECE_BYTES],
            f"3 pieces, the largest of {PIECE_BYTES} bytes, the last of {PIECE_BYTES}",
        ),
        ([PIECE_BYTES + 1, 0], f"2 pieces, the largest of {PIECE_BYTES + 1} bytes, the last of 0"),
        (
            [5, PIECE_BYTES + 1],
            f"2 pieces, the largest of {PIECE_BYTES + 1} bytes, the last of {PIECE_BYTES + 1}",
        ),
    ],
)
def test_pieces_that_no_splitter_makes_are_refused(sizes: list[int], there_is: str) -> None:
    with pytest.raises(WireError) as caught:
        join(received(*[bytes(size) for size in sizes]))
    assert caught.value.happened == "a control message is not cut as it should be"
    assert caught.value.there_is == there_is


def test_nothing_stays_nothing() -> None:
    assert split([]) == []
    assert join([]) == []
