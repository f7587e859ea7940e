"""The backend under the two managers: rooms end as they should, in both transfer models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar, Literal

import pytest

from pdcore.config.records import TransferModel
from pdcore.errors import ConfigError
from pdcore.model import KVPoll, Role
from pdcore.testing.engines import FarProcessPool
from pdcore.testing.far.commands import AbortReceived, ClearReceived
from pdcore.testing.far.pools import NUM_PAGES
from pdcore.testing.rules import Rule
from pdcore.testing.serving import ServingPair
from pdcore.testing.target import Target

ALL = range(NUM_PAGES)

AuxChoice = Literal["auto", "engine"]


class RoomsEnd:
    """The group ``rooms``."""

    far_processes: ClassVar[FarProcessPool]

    @pytest.fixture
    def serving(self, target: Target) -> Iterator[ServingPair]:
        """A prefill and a decode worker, with worker threads submitting."""
        yield from self._serve(target, TransferModel.WORKERS)

    @pytest.fixture
    def packing(self, target: Target) -> Iterator[ServingPair]:
        """The same, and all bytes go packed, through staging slots."""
        yield from self._serve(target, TransferModel.WORKERS, staging="always")

    def _serve(
        self,
        target: Target,
        model: TransferModel,
        aux: AuxChoice = "auto",
        staging: Literal["off", "always"] = "off",
    ) -> Iterator[ServingPair]:
        far, clean = self.far_processes.take(), False
        try:
            with contextlib.closing(ServingPair(target, model.value, far, aux, staging)) as serving:
                yield serving
            clean = True
        finally:
            self.far_processes.give(far, clean=clean)

    @Rule(
        "pages and aux rows of a room arrive, and nothing else changes",
        "aux is declared and its region is treated like pages",
    )
    def test_pages_and_aux_arrive(self, serving: ServingPair) -> None:
        serving.deliver(1, ALL[10:40], ALL[5:35])
        serving.require_arrived(dict(zip(ALL[5:35], ALL[10:40], strict=True)))

    @Rule(
        "scattered pages arrive in chunks",
        "entries of several chunks or buffers are mixed up",
    )
    def test_scattered_pages_arrive_in_chunks(self, serving: ServingPair) -> None:
        here, there = [*ALL[::3], *ALL[1::3]], [*ALL[41::-1], 60]
        serving.deliver(2, here, there, chunk=5)
        serving.require_arrived(dict(zip(there, here, strict=True)))

    @Rule(
        "pages and aux rows arrive packed as well: of large entries in a region that has no pages",
        "an engine that writes whole items only, or is DONE before all of a large entry is there",
    )
    def test_packed_bytes_arrive(self, packing: ServingPair) -> None:
        here, there = [*ALL[::3], *ALL[1::3]], [*ALL[41::-1], 60]
        packing.deliver(21, here, there, chunk=20)
        packing.require_arrived(dict(zip(there, here, strict=True)))

    @Rule(
        "an aborted room fails on both sides, and no byte lands once its pages are safe",
        "bytes of a packed room that reach its pages by another way than its slots",
    )
    def test_an_aborted_room_whose_bytes_go_packed_is_released(self, packing: ServingPair) -> None:
        packing.deliver(22, ALL[:1], ALL[:1])
        sender = packing.sender(23, NUM_PAGES)
        packing.receive(23, ALL)
        sender.send(ALL[:32])
        packing.wait_for_bytes({0: 0})
        sender.abort()
        assert packing.sent(sender) is KVPoll.FAILED
        packing.require_failure(23, "aborted")
        packing.require_still("both sides called the pages of an aborted room safe")

    @Rule(
        "rooms end without a thread that waits, if the engine is asynchronous; else inline submission is"
        " refused",
        "a transfer that makes progress only inside wait()",
    )
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

    @Rule(
        "aux rows travel through the engine exactly if it declares aux",
        "an aux region is not registered with the others, or its rows or fields are too small or unaligned",
    )
    def test_aux_travels_through_the_engine_exactly_if_it_declares_so(self, target: Target) -> None:
        engine = target.start_engine(Role.PREFILL)
        carries = engine.capabilities.aux
        engine.close()
        if not carries:
            with pytest.raises(ConfigError, match="does not carry aux rows"):
                next(self._serve(target, TransferModel.WORKERS, "engine"))
            return
        for serving in self._serve(target, TransferModel.WORKERS, "engine"):
            serving.deliver(12, ALL[:2], ALL[2:4])

    @Rule(
        "an aborted room fails on both sides, and no byte lands once its pages are safe",
        "a transfer is called DRAINED while its bytes are under way, or never again",
    )
    def test_a_room_that_prefill_aborts_fails_on_both_sides_and_is_released(
        self, serving: ServingPair
    ) -> None:
        serving.deliver(4, ALL[:1], ALL[:1])
        sender = serving.sender(5, NUM_PAGES)
        serving.receive(5, ALL)
        sender.send(ALL[:32])
        serving.wait_for_bytes({0: 0})
        sender.abort()
        assert serving.sent(sender) is KVPoll.FAILED
        serving.require_failure(5, "aborted")
        serving.require_still("both sides called the pages of an aborted room safe")

    @Rule(
        "an aborted room fails on both sides, and no byte lands once its pages are safe",
        "a transfer is called DRAINED while its bytes are under way, or never again",
    )
    def test_a_room_that_decode_aborts_fails_on_both_sides_and_is_released(
        self, serving: ServingPair
    ) -> None:
        serving.deliver(6, ALL[:1], ALL[:1])
        sender = serving.sender(7, NUM_PAGES)
        serving.receive(7, ALL)
        sender.send(ALL[:32])
        serving.wait_for_bytes({0: 0})
        serving.far.ask(AbortReceived(7))
        assert serving.sent(sender) is KVPoll.FAILED
        serving.require_failure(7, "aborted")
        serving.require_still("both sides called the pages of an aborted room safe")

    @Rule(
        "a room fails at its deadline",
        "a call of the engine that holds up the manager",
    )
    def test_a_room_that_gets_no_pages_fails_at_its_deadline(self, serving: ServingPair) -> None:
        serving.receive(8, ALL, seconds=0.3)
        sender = serving.sender(8, NUM_PAGES, seconds=0.3)
        assert serving.sent(sender) is KVPoll.FAILED
        serving.require_failure(8, "deadline")

    @Rule(
        "a write to a dead peer FAILS; its pages are safe at the latest when the engine is closed, and "
        "at once if the engine declares drained_on_failure",
        "a write that never ends, or stays UNKNOWN although drained_on_failure is declared",
    )
    def test_rooms_fail_when_decode_dies_and_name_it(self, serving: ServingPair, target: Target) -> None:
        serving.deliver(9, ALL[:1], ALL[:1])
        sender = serving.sender(10, NUM_PAGES)
        serving.receive(10, ALL)
        sender.send(ALL[:32])
        serving.wait_for_bytes({0: 0})
        serving.far.kill()
        sender.send(ALL[32:])
        assert serving.ended(sender) is KVPoll.FAILED
        failure = sender.failure()
        assert failure is not None
        assert failure.code.value in ("peer_lost", "engine"), f"it failed for another reason: {failure}"
        assert "decode" in str(failure), f"the reason does not name the peer: {failure}"
        engine = target.start_engine(Role.PREFILL)
        drained = engine.capabilities.drained_on_failure
        engine.close()
        if not drained:
            serving.close_prefill()  # until then nobody has promised anything
        assert serving.released(sender), "the pages were never released"

    @Rule(
        "a room's id can be used again",
        "what was kept of the first room is found by its id",
    )
    def test_a_room_id_can_be_used_again(self, serving: ServingPair) -> None:
        serving.deliver(11, ALL[:8], ALL[8:16])
        serving.far.ask(ClearReceived(11))
        serving.deliver(11, ALL[16:24], ALL[:8])
        serving.require_arrived(
            dict(zip(ALL[8:16], ALL[:8], strict=True)) | dict(zip(ALL[:8], ALL[16:24], strict=True))
        )
