"""What two managers choose: the transfer model, and how aux rows travel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
from pair import Pair, config, fill, finish, pools, soon

from pdcore import (
    BootstrapServer,
    Config,
    ConfigError,
    DecodeManager,
    KVPoll,
    PrefillManager,
    RoomId,
    Topology,
    TransferConfig,
    TransferModel,
    select,
)
from pdcore.selection.select import Backend


def inline_by_default() -> Backend:
    """The embedded backend, with threads that copy, as one that declares the inline model."""
    backend = select("local", {"copy_threads": 1})
    return attrs.evolve(backend, spec=attrs.evolve(backend.spec, transfer_model=TransferModel.INLINE))


@contextmanager
def two_managers(backend: Backend, here: Config, there: Config) -> Iterator[Pair]:
    source = pools()
    fill(source, 1)
    with (
        BootstrapServer() as bootstrap,
        PrefillManager(backend, source, Topology(), bootstrap.address, here) as prefill,
        DecodeManager(backend, pools(), Topology(), there) as decode,
    ):
        yield Pair(bootstrap, prefill, decode)


@pytest.mark.parametrize(
    ("asked", "inline"), [(None, True), (TransferModel.WORKERS, False), (TransferModel.INLINE, True)]
)
def test_the_transfer_model_is_the_backends_unless_another_is_asked_for(
    asked: TransferModel | None, inline: bool
) -> None:
    asking = attrs.evolve(config(), transfer=TransferConfig(model=asked))
    with two_managers(inline_by_default(), asking, asking) as pair:
        assert pair.prefill.inline is inline
        sender, receiver = pair.open(1)
        sender.init(2)
        receiver.send_metadata([8, 9])
        sender.send([1, 2])
        assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
        assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
        finish(sender, receiver)


def test_a_backend_that_declares_nothing_gets_workers() -> None:
    assert select("local").spec.transfer_model is TransferModel.WORKERS


def test_aux_rows_go_over_tcp_to_a_peer_that_takes_them_no_other_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with two_managers(select("local"), config(aux="auto"), config(aux="tcp")) as pair:
        sender, receiver = pair.open(7)
        assert pair.prefill.pools.aux is not None
        assert pair.decode.pools.aux is not None
        pair.prefill.pools.aux.set(3, RoomId(7), {"first_token": 42})
        sender.init(1, 3)
        receiver.send_metadata([9], 11)
        sender.send([1])
        assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
        assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
        assert pair.decode.pools.aux.get(11, RoomId(7))["first_token"] == 42
        assert sender.metric().nbytes == pair.prefill.pools.layout.page_bytes
        finish(sender, receiver)
    assert "over tcp: it takes them no other way" in caplog.text


def test_a_configuration_that_names_another_backend_is_refused_by_both_sides() -> None:
    asked = attrs.evolve(config(), backend="mooncake_tcp")
    for start in (
        lambda: PrefillManager(select("local"), pools(), Topology(), "127.0.0.1:1", asked),
        lambda: DecodeManager(select("local"), pools(), Topology(), asked),
    ):
        with pytest.raises(ConfigError) as caught:
            start()
        (problem,) = caught.value.problems
        assert (problem.path, problem.origin) == ("backend", "code")
        assert problem.reason == "must be 'local' like the backend handed in, or not set; is 'mooncake_tcp'"
    named = attrs.evolve(config(), backend="local")
    with two_managers(select(named), named, named) as pair:
        pair.move(1, [1], [1])
