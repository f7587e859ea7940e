"""The real MORI-IO moves bytes between two processes, and says what its NIC reports."""

from __future__ import annotations

import numpy as np
from mori.io import StatusCode
from mori_ends import SIZE, Near, far_end, random_bytes

OVER = (StatusCode.SUCCESS, "success")
PAGES = [7 * 4096, 0, 3 * 4096, 4 * 4096]
ELSEWHERE = [4096, 9 * 4096, 11 * 4096, 0]
LENGTHS = [4096, 4096, 4096, 100]


def test_scattered_pages_arrive_and_nothing_else_is_touched() -> None:
    near = Near.start(random_bytes(1))
    expected = np.zeros(SIZE, np.uint8)
    for source, target, length in zip(PAGES, ELSEWHERE, LENGTHS, strict=True):
        expected[target : target + length] = near.content[source : source + length]
    with far_end() as far:
        assert near.finish(near.write(far, PAGES, ELSEWHERE, LENGTHS)) == OVER
        assert np.array_equal(far.content(), expected)


def test_pages_are_read_back_over_two_queue_pairs() -> None:
    near = Near.start(random_bytes(2), qp_per_transfer=2)
    first = near.content.copy()
    with far_end() as far:
        assert near.finish(near.write(far, [0], [0], [SIZE])) == OVER
        near.content[:] = 0
        assert near.finish(near.read(far, PAGES, PAGES, LENGTHS)) == OVER
    for page, length in zip(PAGES, LENGTHS, strict=True):
        assert np.array_equal(near.content[page : page + length], first[page : page + length])
    assert not near.content[8 * 4096 :].any()


def test_an_entry_outside_the_region_is_refused_whole() -> None:
    near = Near.start(random_bytes(3))
    with far_end() as far:
        status = near.write(far, [0, 0], [0, SIZE - 4095], [4096, 4096])
        assert (status.Code(), status.Message()) == (StatusCode.ERR_INVALID_ARGS, "length out of range")
        assert not far.content().any()


def test_a_killed_peer_is_given_up_and_its_queue_pair_stays_failed() -> None:
    near = Near.start(random_bytes(4))
    with far_end() as far:
        assert near.finish(near.write(far, [0], [0], [4096])) == OVER
        far.kill()
        code, message = near.finish(near.write(far, [0], [0], [4096]))
        assert code == StatusCode.ERR_RDMA_OP
        assert message.startswith("transport retry counter exceeded")
        code, message = near.finish(near.write(far, [0], [0], [4096]))
        assert code == StatusCode.ERR_RDMA_OP
        assert message.startswith("Work Request Flushed Error")


def test_memory_that_its_owner_took_back_is_a_remote_access_error() -> None:
    near = Near.start(random_bytes(5))
    with far_end() as far:
        assert near.finish(near.write(far, [0], [0], [4096])) == OVER
        assert far.ask("deregister") == "done"
        code, message = near.finish(near.write(far, [0], [4096], [4096]))
        assert code == StatusCode.ERR_RDMA_OP
        assert message.startswith("remote access error")
        assert not far.content()[4096:].any()
