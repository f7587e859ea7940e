"""The backend under the two managers: rooms end as they should, in both transfer models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar

import pytest

from pdcore.config import TransferModel
from pdcore.errors import ConfigError
from pdcore.model import KVPoll, Role
from pdcore.testing.commands import AbortRoom, ClearRoom
from pdcore.testing.serving import Serving
from pdcore.testing.stage import Crowd
from pdcore.testing.target import Target
from pdcore.testing.worker import NUM_PAGES

ALL = range(NUM_PAGES)


class Rooms:
    """The group ``rooms``."""

    crowd: ClassVar[Crowd]

    @pytest.fixture
    def serving(self, target: Target) -> Iterator[Serving]:
        """A prefill and a decode worker, with worker threads submitting."""
        yield from self._serve(target, TransferModel.WORKERS)

    def _serve(self, target: Target, model: TransferModel) -> Iterator[Serving]:
        far, clean = self.crowd.take(), False
        try:
            with contextlib.closing(Serving(target, model.value, far)) as serving:
                yield serving
            clean = True
        finally:
            self.crowd.give(far, clean=clean)

    def test_pages_and_aux_arrive(self, serving: Serving) -> None:
        serving.deliver(1, ALL[10:40], ALL[5:35])
        serving.require_arrived(dict(zip(ALL[5:35], ALL[10:40], strict=True)))

    def test_scattered_pages_arrive_in_chunks(self, serving: Serving) -> None:
        here, there = [*ALL[::3], *ALL[1::3]], [*ALL[41::-1], 60]
        serving.deliver(2, here, there, chunk=5)
        serving.require_arrived(dict(zip(there, here, strict=True)))

    def test_inline_submission_works_exactly_if_the_engine_is_asynchronous(self, target: Target) -> None:
        engine = target.start_engine(Role.PREFILL)
        asynchronous = engine.capabilities.asynchronous
        engine.close()
        if not asynchronous:
            with pytest.raises(ConfigError, match="inline needs an engine that submits asynchronously"):
                next(self._serve(target, TransferModel.INLINE))
            return
        for serving in self._serve(target, TransferModel.INLINE):
            serving.deliver(3, ALL[:20], ALL[20:40], chunk=7)
            serving.require_arrived(dict(zip(ALL[20:40], ALL[:20], strict=True)))

    def test_a_room_that_prefill_aborts_fails_on_both_sides_and_is_released(self, serving: Serving) -> None:
        serving.deliver(4, ALL[:1], ALL[:1])
        sender = serving.sender(5, NUM_PAGES)
        serving.receive(5, ALL)
        sender.send(ALL[:32])
        serving.wait_for_bytes({0: 0})
        sender.abort()
        assert serving.sent(sender) is KVPoll.FAILED
        serving.require_failure(5, "aborted")
        serving.require_still("both sides called the pages of an aborted room safe")

    def test_a_room_that_decode_aborts_fails_on_both_sides_and_is_released(self, serving: Serving) -> None:
        serving.deliver(6, ALL[:1], ALL[:1])
        sender = serving.sender(7, NUM_PAGES)
        serving.receive(7, ALL)
        sender.send(ALL[:32])
        serving.wait_for_bytes({0: 0})
        serving.far.tell(AbortRoom(7))
        assert serving.sent(sender) is KVPoll.FAILED
        serving.require_failure(7, "aborted")
        serving.require_still("both sides called the pages of an aborted room safe")

    def test_a_room_that_gets_no_pages_fails_at_its_deadline(self, serving: Serving) -> None:
        serving.receive(8, ALL, seconds=0.3)
        sender = serving.sender(8, NUM_PAGES, seconds=0.3)
        assert serving.sent(sender) is KVPoll.FAILED
        serving.require_failure(8, "deadline")

    def test_rooms_fail_when_decode_dies_and_name_it(self, serving: Serving) -> None:
        serving.deliver(9, ALL[:1], ALL[:1])
        sender = serving.sender(10, NUM_PAGES)
        serving.receive(10, ALL)
        sender.send(ALL[:32])
        serving.wait_for_bytes({0: 0})
        serving.far.kill()
        sender.send(ALL[32:])
        assert serving.sent(sender) is KVPoll.FAILED
        failure = sender.failure()
        assert failure is not None
        assert failure.code.value in ("peer_lost", "engine")
        assert "decode" in str(failure), "the reason must name the peer"

    def test_a_room_id_can_be_used_again(self, serving: Serving) -> None:
        serving.deliver(11, ALL[:8], ALL[8:16])
        serving.far.tell(ClearRoom(11))
        serving.deliver(11, ALL[16:24], ALL[:8])
        serving.require_arrived(
            dict(zip(ALL[8:16], ALL[:8], strict=True)) | dict(zip(ALL[:8], ALL[16:24], strict=True))
        )
