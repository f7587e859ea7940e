"""Events as OpenTelemetry spans: one per request and side, joined in one trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from pair import config, finish, paired, pools, soon
from recorder import Recorder

from pdcore import BootstrapServer, KVPoll, PrefillManager, RoomId, Topology, select
from pdcore.events import Event, MetadataReceived, Node, Subscriber, Tracer
from pdcore.model import Generation
from pdcore.telemetry.otel import OpenTelemetryEvents


class Tracing:
    """A provider of its own that keeps the spans that ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.subscriber = OpenTelemetryEvents(self.provider)
        self.tracer = self.provider.get_tracer("the test")

    def span(self, name: str, room: int) -> ReadableSpan:
        (span,) = (s for s in self.all() if s.name == name and (s.attributes or {})["pdcore.room"] == room)
        return span

    def all(self) -> list[ReadableSpan]:
        return [s for s in self.exporter.get_finished_spans() if s.name.startswith("pdcore.")]


@pytest.fixture
def tracing() -> Tracing:
    return Tracing()


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def test_prefills_span_is_the_child_of_decodes_which_is_the_child_of_the_callers(tracing: Tracing) -> None:
    with paired(subscribers=[tracing.subscriber]) as pair:
        with tracing.tracer.start_as_current_span("decode step") as caller:
            receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(1))
        with tracing.tracer.start_as_current_span("prefill step") as linked:
            sender = pair.prefill.sender(RoomId(1))
        receiver.init()
        receiver.send_metadata([4])
        sender.init(1)
        sender.send([5])
        finish(sender, receiver)
        pair.move(2, [1], [1])
    received, sent = tracing.span("pdcore.receive", 1), tracing.span("pdcore.send", 1)
    assert (received.kind, sent.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    assert received.parent is not None
    assert sent.parent is not None
    assert received.parent.span_id == caller.get_span_context().span_id
    assert (sent.parent.trace_id, sent.parent.span_id) == ids(received)
    assert sent.parent.is_remote
    assert ids(sent)[0] == ids(received)[0] == caller.get_span_context().trace_id
    assert [link.context.span_id for link in sent.links] == [linked.get_span_context().span_id]
    assert [e.name for e in received.events] == ["metadata sent"]
    assert [e.name for e in sent.events] == ["metadata received", "chunk submitted", "chunk landed"]
    for span in (received, sent):
        attributes = span.attributes or {}
        assert attributes["pdcore.outcome"] == "success"
        assert attributes["pdcore.backend"] == "local"
        assert attributes["pdcore.pages"] == 1
        assert span.status.status_code is StatusCode.UNSET
    other = ids(tracing.span("pdcore.receive", 2))[0]
    assert other == ids(tracing.span("pdcore.send", 2))[0] != ids(received)[0]


def test_a_request_that_fails_ends_both_spans_as_errors_that_say_why(tracing: Tracing) -> None:
    with paired(subscribers=[tracing.subscriber]) as pair:
        pair.move(1, [1], [1])
        sender, receiver = pair.open(2)
        sender.init(2)
        receiver.send_metadata([1])
        assert sender.wait(soon()) is KVPoll.FAILED
        assert receiver.wait(soon()) is KVPoll.FAILED
        unasked, _ = pair.open(3)
        unasked.abort()
        offered, unwanted = pair.open(4)
        unwanted.decline("it holds all")
        assert offered.wait(soon()) is KVPoll.FAILED
    for name in ("pdcore.send", "pdcore.receive"):
        span = tracing.span(name, 2)
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "prefill and decode disagree about room 2"
        assert (span.attributes or {})["pdcore.outcome"] == "plan"
        assert "prefill announces 2 pages" in str((span.attributes or {})["pdcore.failure"])
        declined = tracing.span(name, 4)
        assert declined.status.status_code is StatusCode.UNSET
        assert (declined.attributes or {})["pdcore.outcome"] == "declined"
    alone = tracing.span("pdcore.send", 3)
    assert alone.parent is None
    assert (alone.attributes or {})["pdcore.outcome"] == "aborted"


@pytest.mark.parametrize("sent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 100_000])
def test_a_traceparent_that_is_none_makes_a_trace_of_its_own(tracing: Tracing, sent: str) -> None:
    told = Recorder()
    subscribers: list[Subscriber] = [Liar(sent), tracing.subscriber, told]
    with paired(subscribers=subscribers) as pair:
        pair.move(1, [1], [1])
    assert [e.trace for e in told.of(MetadataReceived)] == [sent]
    assert tracing.span("pdcore.send", 1).parent is None


class Liar(Tracer):
    """Sends along what is no traceparent."""

    def __init__(self, says: str) -> None:
        self._says = says

    def __call__(self, event: Event) -> None:
        pass

    def traceparent(self, node: Node, room: RoomId, generation: Generation) -> str | None:
        return self._says


DECODE = """
import sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pair import config, pools, soon
from pdcore import DecodeManager, KVPoll, RoomId, Topology, select
from pdcore.telemetry.otel import OpenTelemetryEvents

exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
events = OpenTelemetryEvents(provider)
with DecodeManager(select("local"), pools(), Topology(), config(), [events]) as decode:
    receiver = decode.receiver(sys.argv[1], RoomId(9))
    receiver.init()
    receiver.send_metadata([2])
    assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
    (span,) = exporter.get_finished_spans()
    print(format(span.context.trace_id, "032x"), format(span.context.span_id, "016x"))
"""


def test_the_spans_of_two_processes_are_one_trace(tracing: Tracing) -> None:
    memory = pools()
    with (
        BootstrapServer() as bootstrap,
        PrefillManager(
            select("local"), memory, Topology(), bootstrap.address, config(), [tracing.subscriber]
        ) as prefill,
        subprocess.Popen(
            [sys.executable, "-c", DECODE, bootstrap.address],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        ) as decode,
    ):
        sender = prefill.sender(RoomId(9))
        sender.init(1)
        sender.send([1])
        try:
            out, _ = decode.communicate(timeout=60)
        finally:
            decode.kill()
        assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
    sent = tracing.span("pdcore.send", 9)
    assert sent.parent is not None
    assert out.split() == [format_trace_id(sent.parent.trace_id), format_span_id(sent.parent.span_id)]
    assert out.split()[0] == format_trace_id(ids(sent)[0])


def test_an_older_peer_that_sends_no_trace_is_served(tracing: Tracing) -> None:
    told = Recorder()
    with paired() as pair:
        pair.prefill.subscribe(tracing.subscriber)
        pair.prefill.subscribe(told)
        pair.move(1, [1], [1])
    assert [e.trace for e in told.of(MetadataReceived)] == [None]
    assert tracing.span("pdcore.send", 1).parent is None
    assert not [s for s in tracing.all() if s.name == "pdcore.receive"]
