"""What decode knows of a prefill group before any room, without ever waiting for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import attrs
import pytest
from pair import MHA, config, paired, pools, soon

from pdcore import (
    BootstrapServer,
    DecodeManager,
    FailureCode,
    KVTransferError,
    PrefillFacts,
    PrefillManager,
    Topology,
    __version__,
    select,
)
from pdcore.bootstrap import BootstrapClient, RankRecord
from pdcore.bootstrap.record import Traits
from pdcore.decode import facts
from pdcore.decode.facts import MOST, KnownGroups
from pdcore.layout.fingerprint import Fingerprint
from pdcore.model import new_incarnation

Answer = PrefillFacts | KVTransferError | None
TRAITS = Traits("local", "shm", "1", "2", 16, "bfloat16", Fingerprint({"model": "a"}))
RANK = RankRecord(new_incarnation(), "127.0.0.1:9", Topology(tp_size=2, dp_size=3, dp_rank=1), 60.0, TRAITS)


class OwnClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> OwnClock:
    return OwnClock()


@pytest.fixture
def client() -> Iterator[BootstrapClient]:
    one = BootstrapClient("test")
    yield one
    one.close(soon())


@pytest.fixture
def nobody() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{unused.getsockname()[1]}"


def known(client: BootstrapClient, clock: OwnClock, *, paired: bool = False) -> KnownGroups:
    return KnownGroups(client, 10.0, clock, lambda _: paired)


def until(ask: Callable[[], Answer], fits: Callable[[Answer], bool]) -> Answer:
    deadline = soon()
    while not fits(answer := ask()):
        assert not deadline.expired, answer
        threading.Event().wait(0.01)
    return answer


def told(ask: Callable[[], Answer]) -> PrefillFacts:
    answer = until(ask, lambda answer: isinstance(answer, PrefillFacts))
    assert isinstance(answer, PrefillFacts)
    return answer


def refused(ask: Callable[[], Answer]) -> KVTransferError:
    answer = until(ask, lambda answer: isinstance(answer, KVTransferError))
    assert isinstance(answer, KVTransferError)
    return answer


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments are short."""
    monkeypatch.setattr(facts, "MOMENT", 0.1)


@pytest.mark.usefixtures("brief")
def test_decode_knows_a_group_before_any_room_and_loses_it_with_the_group() -> None:
    layout = attrs.evolve(MHA, fingerprint={"model": "llama-3-8b"})
    cfg = config(interval=0.05, max_failures=6)
    with paired(cfg, source=pools(layout), target=pools(layout)) as pair:
        where = pair.bootstrap.address
        found = told(lambda: pair.decode.prefill_group(where))
        there = pair.prefill.describe("")
        assert found == PrefillFacts(
            dp_size=1,
            tp_size=1,
            pp_size=1,
            cp_size=1,
            backend="local",
            protocol=there.protocol,
            version=__version__,
            engine_version=there.engine_version,
            page_size=4,
            dtype="bfloat16",
            fingerprint=Fingerprint({"model": "llama-3-8b"}),
        )
        assert not pair.decode.snapshot().rooms
        pair.move(1, [1], [1])
        assert pair.decode.prefill_group(where) == found
        pair.prefill.close()
        gone = refused(lambda: pair.decode.prefill_group(where))
        assert gone.happened == f"no prefill rank is registered (bootstrap service {where})"
        other = pools(attrs.evolve(layout, fingerprint={"model": "other"}))
        with PrefillManager(select("local"), other, Topology(), where, cfg):
            assert told(lambda: pair.decode.prefill_group(where)).fingerprint == Fingerprint(
                {"model": "other"}
            )
    closed = pair.decode.prefill_group(where)
    assert isinstance(closed, KVTransferError)
    assert closed.code is FailureCode.SHUTDOWN


@pytest.mark.usefixtures("brief")
def test_a_service_that_is_not_there_yet_is_asked_until_it_has_a_rank(nobody: str) -> None:
    with DecodeManager(select("local"), pools(), Topology(), config()) as decode:
        missing = refused(lambda: decode.prefill_group(nobody))
        assert missing.code is FailureCode.PEER_LOST
        assert missing.happened == f"the bootstrap service at {nobody} cannot be reached"
        assert missing.there_is.startswith("asked 1 time in ")
        assert missing.there_is.endswith(": Connection refused")
        with BootstrapServer(port=int(nobody.rpartition(":")[2])) as service:
            empty = until(lambda: decode.prefill_group(nobody), lambda found: found is not missing)
            assert isinstance(empty, KVTransferError)
            assert empty.happened == f"no prefill rank is registered (bootstrap service {nobody})"
            assert empty.there_is == "none of which the lease holds"
            with PrefillManager(select("local"), pools(), Topology(), service.address, config()):
                assert told(lambda: decode.prefill_group(nobody)).page_size == 4


def test_who_has_no_key_is_told_so() -> None:
    with (
        BootstrapServer(auth_key="k" * 32) as service,
        DecodeManager(select("local"), pools(), Topology(), config()) as decode,
    ):
        refusal = refused(lambda: decode.prefill_group(service.address))
        assert refusal.code is FailureCode.UNAUTHENTICATED
        assert "requires its key" in refusal.happened


@pytest.mark.parametrize("address", ["nowhere", "", "a b:1", "127.0.0.1:99999", 8998, None, []])
def test_an_address_that_can_be_none_is_an_answer(
    address: str, client: BootstrapClient, clock: OwnClock
) -> None:
    answer = known(client, clock).of(address)
    assert isinstance(answer, KVTransferError)
    assert "the address of the bootstrap service" in answer.happened


def test_an_address_is_known_however_it_is_written(client: BootstrapClient, clock: OwnClock) -> None:
    with BootstrapServer("::1") as service:
        client.register(service.address, RANK, soon())
        groups = known(client, clock)
        found = told(lambda: groups.of(service.address))
        assert groups.of(service.address.replace("::1", "0:0::0:1")) is found
        assert groups.addresses() == {service.address}


def test_any_rank_tells_the_facts_of_its_group(client: BootstrapClient, clock: OwnClock) -> None:
    with BootstrapServer() as service:
        client.register(service.address, RANK, soon())
        groups = known(client, clock)
        assert told(lambda: groups.of(service.address)) == PrefillFacts(
            3, 2, 1, 1, "local", "shm", "1", "2", 16, "bfloat16", Fingerprint({"model": "a"})
        )


def test_facts_are_asked_for_again_within_the_lease_and_end_with_it(
    client: BootstrapClient, clock: OwnClock
) -> None:
    with BootstrapServer() as service:
        client.register(service.address, RANK, soon())
        groups = known(client, clock)
        first = told(lambda: groups.of(service.address))
        other = attrs.evolve(RANK, traits=attrs.evolve(TRAITS, page_size=32))
        client.register(service.address, other, soon())
        assert groups.of(service.address) is first
        clock.now += RANK.lease / 2
        until(lambda: groups.of(service.address), lambda found: found is not first)
        assert told(lambda: groups.of(service.address)).page_size == 32
    clock.now += RANK.lease / 2
    assert told(lambda: groups.of(service.address)).page_size == 32  # not reached, but the lease holds
    until_asked(groups, service.address)
    assert told(lambda: groups.of(service.address)).page_size == 32
    clock.now += RANK.lease
    assert refused(lambda: groups.of(service.address)).code is FailureCode.PEER_LOST


def until_asked(groups: KnownGroups, address: str) -> None:
    deadline = soon()
    while groups._known[address].asking:
        assert not deadline.expired
        threading.Event().wait(0.01)


def test_facts_of_a_group_that_is_paired_are_not_asked_for_again(
    client: BootstrapClient, clock: OwnClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BootstrapServer() as service:
        client.register(service.address, RANK, soon())
        groups = known(client, clock, paired=True)
        first = told(lambda: groups.of(service.address))
        monkeypatch.setattr(client, "any_rank", None)
        for _ in range(10):
            clock.now += RANK.lease
            assert groups.of(service.address) is first


def test_an_answer_that_comes_after_the_group_was_dropped_is_not_taken(
    client: BootstrapClient, clock: OwnClock
) -> None:
    groups = known(client, clock)
    with BootstrapServer() as service:
        assert groups.of(service.address) is None
        groups.drop([service.address, "127.0.0.1:1"])
        client.register(service.address, RANK, soon())
        assert told(lambda: groups.of(service.address)).tp_size == 2


def test_no_more_addresses_are_remembered_than_may(
    client: BootstrapClient, clock: OwnClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MOST", 4)
    groups = known(client, clock)
    for port in range(1, 9):
        groups.of(f"127.0.0.1:{port}")
    assert groups.addresses() == {f"127.0.0.1:{port}" for port in range(5, 9)}
    assert MOST == 1024


def test_something_else_that_answers_is_not_taken_for_a_rank(
    client: BootstrapClient, clock: OwnClock
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as site:
        address = f"127.0.0.1:{site.getsockname()[1]}"
        groups = known(client, clock)
        assert groups.of(address) is None
        connection, _ = site.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            strange = refused(lambda: groups.of(address))
    assert strange.happened == f"the bootstrap service answered strangely (bootstrap service {address})"
    assert strange.there_is == "HTTP 200, b'{}'"
