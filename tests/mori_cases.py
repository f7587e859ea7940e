"""What the MORI adapter does, as tests for the real library and for its double alike."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from mori_engines import (
    NAMES,
    SEVERAL,
    SIZE,
    SOME,
    TRANSPORT,
    End,
    Start,
    failed,
    forged,
    given,
    quiescence,
    require_arrived,
    soon,
)
from pd_mori.config import MoriOptions
from pd_mori.engine import MoriEngine, MoriPeer
from pd_mori.library import Library

from pdcore.contract.outcome import Quiescence, TransferState
from pdcore.contract.regions import Region, WriteBatch
from pdcore.errors import EngineClosedError, EngineError, FailureCode, RegistrationError
from pdcore.model import new_incarnation


class MoriCases:
    @pytest.fixture
    def library(self) -> Library:
        raise NotImplementedError("a subclass says which MORI it is")

    @pytest.fixture
    def start(self, library: Library) -> Iterator[Start]:
        """Start engines, and close them in the end."""
        with contextlib.ExitStack() as stack:
            count = iter(range(100))

            def start() -> End:
                options = MoriOptions(qp_per_transfer=2)
                native = library.engine(new_incarnation(), "127.0.0.1", options, xgmi=False)
                engine = MoriEngine(library, native, TRANSPORT, gpus=False, aux=True)
                stack.callback(engine.close)
                first = next(count) == 0
                random = np.random.default_rng(5).integers(0, 256, (len(NAMES), SIZE), np.uint8)
                memory = {
                    name: row.copy() if first else np.zeros_like(row)
                    for name, row in zip(NAMES, random, strict=True)
                }
                return End(engine, memory, engine.register([Region.of(name, memory[name]) for name in NAMES]))

            yield start

    def test_a_batch_arrives_and_each_region_pair_is_one_call_with_lists(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        calls: list[tuple[object, ...]] = []
        native = here.engine.native
        write = native.batch_write

        def recorded(*given: Any) -> Any:
            calls.append(given)
            return write(*given)

        monkeypatch.setattr(native, "batch_write", recorded)
        here.deliver(peer, SEVERAL)
        require_arrived(here.memory, there.memory, SEVERAL)
        assert [given[1] for given in calls] == [[[0, 4096, 64]], [[100]], [[9000, 0]]]
        assert [given[4] for given in calls] == [[[1024, 2048, 7]], [[5000]], [[16, 32]]]
        assert all(len(argument) == 1 for given in calls for argument in given)  # type: ignore[arg-type]  # lists
        assert len({given[5][0] for given in calls}) == 3  # type: ignore[index]  # a uid each
        assert len(here.engine.flights) == 0

    def test_connecting_wires_up_the_shared_regions_and_moves_no_byte(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = start(), start()
        write, sizes = here.engine.native.batch_write, []

        def recorded(*given: Any) -> Any:
            sizes.append(given[4])
            return write(*given)

        monkeypatch.setattr(here.engine.native, "batch_write", recorded)
        here.connect(there)
        assert sizes == [[[0]]] * len(NAMES)
        assert not any(array.any() for array in there.memory.values())

    def test_every_engine_has_a_key_and_a_port_of_its_own(self, start: Start) -> None:
        ends = [start() for _ in range(3)]
        descs = [end.engine.native.get_engine_desc() for end in ends]
        assert [desc.key.encode() for desc in descs] == [end.engine.endpoint() for end in ends]
        assert len({desc.key for desc in descs}) == len({desc.port for desc in descs} - {0}) == 3

    @pytest.mark.parametrize(
        ("field", "change", "told"),
        [
            ("memories", lambda packed: packed[:-1], "2 memories of engine"),
            ("memories", lambda packed: [packed[0]] * 2, "2 memories of engine"),
            ("memories", lambda packed: [b"noise", *packed[1:]], "bad_cast"),
            ("engine", lambda packed: b"", "insufficient bytes"),
        ],
    )
    def test_an_export_that_mori_would_crash_on_is_refused(
        self, start: Start, field: str, change: Callable[[Any], Any], told: str
    ) -> None:
        here, there = start(), start()
        with pytest.raises(EngineError, match="MORI does not accept a peer's export") as caught:
            here.engine.connect(there.engine.endpoint(), forged(there.export, **{field: change}), soon())
        assert told in caught.value.there_is

    def test_memory_of_another_engine_or_size_is_refused(self, start: Start) -> None:
        here, there, third = start(), start(), start()
        foreign = msgspec.msgpack.decode(msgspec.msgpack.decode(third.export[4:])["native"])["memories"]
        shorter = there.engine
        shorter.deregister()
        part = shorter.register([Region.of(name, there.memory[name][:512]) for name in NAMES])
        short = msgspec.msgpack.decode(msgspec.msgpack.decode(part[4:])["native"])["memories"]
        for memories in (foreign, short):
            export = forged(there.export, memories=partial(given, memories))
            with pytest.raises(EngineError, match="MORI does not accept a peer's export"):
                here.engine.connect(there.engine.endpoint(), export, soon())

    def test_regions_that_begin_at_one_place_and_memory_that_is_not_there_are_named(
        self, start: Start
    ) -> None:
        end = start()
        end.engine.deregister()
        array = end.memory["aux"]
        twice = [Region.of("first", array), Region.of("second", array[:100])]
        with pytest.raises(RegistrationError, match="'second' begins where 'first' does"):
            end.engine.register(twice)
        with pytest.raises(RegistrationError, match="'gone' is not mapped"):
            end.engine.register([Region("gone", 4096, 4096)])
        end.engine.register([Region.of("first", array)])

    def test_a_closed_port_is_told_before_mori_tries(self, start: Start) -> None:
        here, there = start(), start()
        there.engine.close()
        with pytest.raises(EngineError, match="cannot be connected") as caught:
            here.connect(there)
        assert "Connection refused" in caught.value.there_is

    def test_a_peer_that_never_answers_holds_up_no_other(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there, hung = start(), start(), start()
        peer = here.connect(there)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            read = here.engine._read

            def redirected(*given: Any) -> MoriPeer:
                found = read(*given)
                packed = found.remote.desc.pack()
                fields = msgspec.msgpack.decode(packed)
                fields[4] = port
                desc = here.engine.library.engine_desc(msgspec.msgpack.encode(fields))
                found.remote.desc = desc
                here.engine.native.register_remote_engine(desc)
                return found

            monkeypatch.setattr(here.engine, "_read", redirected)
            reasons: list[str] = []

            def connect() -> None:
                with pytest.raises(EngineError, match="cannot be connected") as caught:
                    here.connect(hung)
                reasons.append(caught.value.there_is)

            connecting = threading.Thread(target=connect)
            connecting.start()
            silent.accept()[0].close()  # the adapter's own question; MORI's stays unanswered
            unanswered, _ = silent.accept()
            with unanswered:
                here.deliver(peer, SOME)
                assert connecting.is_alive(), "the healthy peer waited for the hung one"
                connecting.join()
        assert "ReadMessageHeader" in reasons[0]

    def test_a_lost_peer_is_written_to_no_more_and_its_next_incarnation_is(self, start: Start) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        here.deliver(peer, SOME)
        there.engine.close()
        first = here.engine.write(peer, SOME)
        code, reason = failed(first)
        assert code is FailureCode.PEER_LOST
        assert reason.startswith("ERR_RDMA_OP: transport retry counter exceeded")
        assert quiescence(first) is Quiescence.IN_FLIGHT
        later = here.engine.write(peer, SOME)
        assert later.poll() is TransferState.FAILED
        assert failed(later) == (FailureCode.PEER_LOST, f"it failed before, {reason}")
        assert later.quiescence is Quiescence.DRAINED
        with pytest.raises(EngineError) as caught:
            here.connect(there)
        assert caught.value.there_is == reason
        here.engine.disconnect(peer)
        assert quiescence(first) is Quiescence.DRAINED, "its port is closed, so nothing is left there"
        fresh = start()
        here.deliver(here.connect(fresh), SOME)
        require_arrived(here.memory, fresh.memory, SOME)

    def test_a_status_that_mori_never_started_is_a_failure(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        unstarted = vars(__import__("mori.cpp").cpp)["TransferStatus"]
        monkeypatch.setattr(here.engine.native, "batch_write", lambda *given: [unstarted()])
        assert failed(here.engine.write(peer, SOME)) == (
            FailureCode.ENGINE,
            "INIT: MORI never started it",
        )

    def test_a_control_plane_that_fails_quarantines_the_peer(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = start(), start()
        peer = here.connect(there)

        def raises(*given: object) -> None:
            raise RuntimeError("connect(127.0.0.1:1): Connection refused")

        with monkeypatch.context() as patch:
            patch.setattr(here.engine.native, "batch_write", raises)
            transfer = here.engine.write(peer, SEVERAL)
        assert failed(transfer) == (FailureCode.PEER_LOST, "connect(127.0.0.1:1): Connection refused")
        assert transfer.quiescence is Quiescence.DRAINED, "no byte of it was started"
        assert failed(here.engine.write(peer, SOME))[1].startswith("it failed before, connect(")
        assert len(here.engine.flights) == 0

    def test_a_disconnected_peer_is_not_written_to(self, start: Start) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        here.engine.disconnect(peer)
        code, reason = failed(here.engine.write(peer, SOME))
        assert code is FailureCode.ENGINE
        assert reason == "ERR_BAD_STATE: No available backend found, create backend first"
        here.deliver(here.connect(there), SOME)

    def test_a_transfer_that_nobody_waits_for_is_held_until_it_ends(self, start: Start) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        whole = WriteBatch.of(0, 0, np.arange(0, SIZE, 8), np.arange(0, SIZE, 8)[::-1], [8] * (SIZE // 8))
        for _ in range(20):
            here.engine.write(peer, whole)
        here.engine.close()
        assert len(here.engine.flights) == 0
        with pytest.raises(EngineClosedError):
            here.engine.write(peer, SOME)

    def test_memory_is_deregistered_when_its_transfers_have_ended(self, start: Start) -> None:
        here, there = start(), start()
        peer = here.connect(there)
        whole = WriteBatch.of(0, 0, np.arange(0, SIZE, 16), np.arange(0, SIZE, 16), [8] * (SIZE // 16))
        transfers = [here.engine.write(peer, whole) for _ in range(10)]
        here.engine.deregister()
        assert [transfer.poll() for transfer in transfers] == [TransferState.DONE] * 10

    def test_an_engine_writes_to_itself(self, start: Start) -> None:
        end = start()
        end.deliver(end.connect(end), WriteBatch.of(0, 1, [0], [100], [3000]))
        assert np.array_equal(end.memory["kv.1"][100:3100], end.memory["kv.0"][:3000])

    def test_raw_writes_move_the_same_bytes(self, start: Start) -> None:
        here, there = start(), start()
        here.engine.prepare_raw(here.connect(there), SEVERAL)()
        require_arrived(here.memory, there.memory, SEVERAL)
