"""The core decides by what an engine declares: what it says beyond that is not believed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import attrs
import pytest

from pdcore.decode.revocation import LostWriter, Revocations
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import Deadline, PeerIdentity, Role, new_incarnation


@pytest.fixture
def ends() -> Iterator[tuple[LocalEngine, LostWriter, threading.Event]]:
    """A receiver, and a writer that it lost, with an event that is set once it is proven silent."""
    receiver, writer, silent = LocalEngine(LocalOptions()), LocalEngine(LocalOptions()), threading.Event()
    receiver.admit(writer.endpoint())
    identity = PeerIdentity(Role.PREFILL, new_incarnation(), "127.0.0.1:1")
    yield receiver, LostWriter(identity, writer.endpoint(), None, lambda: True, silent.set), silent
    writer.close()
    receiver.close()


def test_a_revocable_engine_is_believed(ends: tuple[LocalEngine, LostWriter, threading.Event]) -> None:
    receiver, lost, silent = ends
    revocations = Revocations(receiver, None, lambda _: False)
    revocations.start(lost)
    assert silent.wait(30)
    revocations.close(Deadline.after(30))


def test_an_engine_that_says_more_than_it_declares_is_not_believed(
    ends: tuple[LocalEngine, LostWriter, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    receiver, lost, silent = ends
    receiver.capabilities = attrs.evolve(receiver.capabilities, revocable=False)
    revocations = Revocations(receiver, None, lambda _: False)
    revocations.start(lost)
    again, deadline = threading.Event(), Deadline.after(30)
    while "may still write" not in caplog.text and not deadline.expired:
        again.wait(0.01)
    assert "may still write" in caplog.text
    assert not silent.is_set()
    revocations.close(Deadline.after(30))
