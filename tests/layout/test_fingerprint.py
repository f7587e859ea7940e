"""What the bytes mean: fingerprints are compared by name, engine versions are exchanged and said."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair import MHA, MLA, paired, peers, pools, soon
from recorder import Recorder
from wire_samples import DESCRIPTION

from pdcore import Backend, EngineError, FailureCode, Fingerprint, KVLayout, KVPoll, LayoutError, select
from pdcore.events import PeerPaired
from pdcore.layout.fingerprint import model_fingerprint
from pdcore.managers.pairing_remarks import pairing_remarks
from pdcore.model import Role
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import pairing_misfits
from pdcore.wire import Codec, PairRequest

LLAMA = {"model": "llama-3-8b", "revision": "8cde5ca", "quantisation": "fp8"}


def with_fingerprint(fields: Mapping[str, str] | None) -> KVLayout:
    return attrs.evolve(MHA, fingerprint=fields)


# The value


def test_a_fingerprint_is_made_of_a_mapping_and_stands_in_the_layout() -> None:
    for layout in (
        KVLayout.heads(layers=[0], kv_heads=1, head_dim=8, page_size=1, num_pages=1, fingerprint=LLAMA),
        KVLayout.latent(layers=[0], latent_dim=8, page_size=1, num_pages=1, fingerprint=Fingerprint(LLAMA)),
    ):
        assert layout.fingerprint == Fingerprint(dict(reversed(LLAMA.items())))
        assert str(layout.fingerprint) == "model=llama-3-8b, quantisation=fp8, revision=8cde5ca"
        assert hash(layout) == hash(attrs.evolve(layout))
        assert layout.beside(
            KVLayout.latent(layers=[1], latent_dim=8, page_size=1, num_pages=1, fingerprint=LLAMA)
        ).fingerprint == Fingerprint(LLAMA)


def test_who_names_nothing_has_no_fingerprint() -> None:
    assert MHA.fingerprint is None
    assert with_fingerprint({}).fingerprint is None


@pytest.mark.parametrize(
    ("wrong", "there_is"),
    [
        ({"model": ""}, "model=str ''"),
        ({"model": "a\nb"}, "model=str 'a\\nb'"),
        ({"model": "x" * 257}, "model=str 'xxx"),
        ({"layers": 32}, "layers=int 32"),
        ({"model": None}, "model=None"),
        ({"model": b"llama"}, "model=bytes b'llama'"),
        ({"rope": {"theta": "1e6"}}, "rope=dict"),
        ({"": "x"}, "the name str ''"),
        ({"a name": "x"}, "the name str 'a name'"),
        ({"n" * 65: "x"}, "the name str 'nnn"),
        ({"modèle": "x"}, "the name str 'modèle'"),
        ({5: "x"}, "the name int 5"),
        ([("model", "a"), ("model", "b")], "model twice"),
        ({f"n{n}": "x" for n in range(65)}, "65 names"),
        ("llama", "str 'llama'"),
        (["llama"], "list ['llama']"),
        (7, "int 7"),
    ],
)
def test_what_makes_no_fingerprint_is_refused_and_named(wrong: Any, there_is: str) -> None:
    for make in (Fingerprint, with_fingerprint):
        with pytest.raises(LayoutError) as caught:
            make(wrong)
        assert caught.value.there_is.startswith(there_is)
        assert "fingerprint" in caught.value.happened
        assert caught.value.to_do


def test_a_peer_may_send_no_other_fingerprint_than_a_caller_can_make() -> None:
    (frame,) = Codec.encode(PairRequest(DESCRIPTION))
    for good, bad in (
        (b"llama-3-8b", b"llama\n3-8b"),
        (b"revision", b"rev sion"),
        (b"model", b"mo\x00el"),
    ):
        assert good in bytes(frame)
        with pytest.raises(Exception, match="fingerprint"):
            Codec().decode([Received(memoryview(bytes(frame).replace(good, bad)))])


@attrs.frozen
class Received:
    buffer: memoryview


# Compared by name

facts = st.dictionaries(st.sampled_from(["model", "revision", "rope", "x"]), st.sampled_from("ab"))


@given(facts, facts)
def test_exactly_the_names_that_differ_are_misfits_with_both_values(
    ours: dict[str, str], theirs: dict[str, str]
) -> None:
    prefill, decode = (
        attrs.evolve(DESCRIPTION, layout=attrs.evolve(DESCRIPTION.layout, fingerprint=fields))
        for fields in (ours, theirs)
    )
    misfits = {m.field: (m.prefill, m.decode) for m in pairing_misfits(prefill, decode)}
    if not ours or not theirs:
        assert misfits == {}
        remarks = pairing_remarks(prefill, decode)
        assert len(remarks) == (bool(ours) != bool(theirs))
        return
    assert pairing_remarks(prefill, decode) == ()
    assert misfits == {
        f"fingerprint.{name}": tuple(
            repr(side[name]) if name in side else "not given" for side in (ours, theirs)
        )
        for name in {*ours, *theirs}
        if ours.get(name) != theirs.get(name)
    }


@pytest.mark.parametrize(
    "change",
    [
        {"model": "llama-3.1-8b"},
        {"revision": "e1945c4"},
        {"quantisation": "none"},
        {"model": "other", "revision": "main"},
        {"rope": "theta=1e6"},
    ],
)
def test_two_models_of_equal_shape_do_not_pair(change: dict[str, str]) -> None:
    source, target = (pools(with_fingerprint(fields)) for fields in (LLAMA, {**LLAMA, **change}))
    with paired(source=source, target=target) as pair:
        sender, receiver = pair.open(1)
        sender.init(1)
        receiver.send_metadata([1])
        sender.send([1])
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.INCOMPATIBLE
        for name, value in change.items():
            was = repr(LLAMA[name]) if name in LLAMA else "not given"
            assert f"fingerprint.{name}: prefill {was}, decode {value!r}" in failure.there_is
        assert f"{len(change)} field(s) differ" in failure.happened
        assert not target.arrays[0].any()


@pytest.mark.parametrize("layout", [MHA, MLA])
def test_one_model_pairs_and_nobody_remarks_on_it(layout: KVLayout, caplog: pytest.LogCaptureFixture) -> None:
    source, target = (pools(attrs.evolve(layout, fingerprint=LLAMA)) for _ in range(2))
    with paired(source=source, target=target) as pair, caplog.at_level(logging.INFO, "pdcore.pairing"):
        pair.move(1, [1], [1])
        told = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "pdcore.pairing"]
        both = (peers(pair.prefill)[0].identity, peers(pair.decode)[0].identity)
    assert sorted(told) == sorted(("INFO", f"paired with {peer} (engine pdcore 0.1.0)") for peer in both)


@pytest.mark.parametrize("sides", [(LLAMA, None), (None, LLAMA)])
def test_one_fingerprint_alone_pairs_and_both_sides_warn_once(
    sides: tuple[dict[str, str] | None, ...], caplog: pytest.LogCaptureFixture
) -> None:
    source, target = (pools(with_fingerprint(fields)) for fields in sides)
    heard = Recorder()
    with paired(source=source, target=target, subscribers=[heard]) as pair:
        for room in (1, 2):
            pair.move(room, [1], [1])
    warned = [r.getMessage() for r in caplog.records if "fingerprint" in r.getMessage()]
    side, other = ("prefill", "decode") if sides[1] is None else ("decode", "prefill")
    assert len(warned) == 2
    assert all(f"although only {side} has a fingerprint (model=llama-3-8b, " in line for line in warned)
    assert all(f"whether {other} serves the same model is not checked" in line for line in warned)
    assert [len(event.remarks) for event in heard.of(PeerPaired)] == [1, 1]


# Engine versions


def named(version: str) -> PeerDescription:
    return attrs.evolve(DESCRIPTION, engine_version=version)


def test_engines_of_two_versions_are_remarked_on_not_refused() -> None:
    for ours, theirs in itertools.permutations(["mooncake 0.3.12", "mooncake 0.3.10", ""], 2):
        assert pairing_misfits(named(ours), named(theirs)) == ()
        (remark,) = pairing_remarks(named(ours), named(theirs))
        assert f"prefill has {ours or 'an unknown version'}" in remark
        assert f"decode has {theirs or 'an unknown version'}" in remark
    assert pairing_remarks(named("a"), named("a")) == ()


def test_a_peers_engine_version_is_in_the_event_the_log_and_the_error_of_a_failed_connect(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    versions = iter(["engine 1.0", "engine 2.0"])  # prefill starts first
    heard = Recorder()
    monkeypatch.setattr(Backend, "engine_version", lambda self: next(versions))
    with paired(subscribers=[heard]) as pair:
        connect = pair.prefill.engine.connect

        def refuses(*given: Any) -> Any:
            raise EngineError("no way", "a wall", "go around")

        with monkeypatch.context() as patch:
            patch.setattr(pair.prefill.engine, "connect", refuses)
            _, receiver = pair.open(1)
            assert receiver.wait(soon()) is KVPoll.FAILED
        assert pair.prefill.engine.connect == connect
        failure = receiver.failure()
        assert failure is not None
        assert failure.there_is == (
            "a wall; the engines' versions differ: prefill has engine 1.0, decode has engine 2.0"
        )
        pair.move(2, [1], [1])
    assert {(e.node.role, e.engine_version) for e in heard.of(PeerPaired)} == {
        (Role.PREFILL, "engine 2.0"),
        (Role.DECODE, "engine 1.0"),
    }
    assert all("versions differ" in e.remarks[0] for e in heard.of(PeerPaired))
    assert len([r for r in caplog.records if r.getMessage().startswith("paired with")]) == 2


def test_a_backend_that_cannot_tell_its_engines_version_starts_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def tells() -> str:
        raise OSError(2, "no metadata")

    backend = select("local")
    assert backend.engine_version() == "pdcore 0.1.0"
    mute = attrs.evolve(backend, spec=attrs.evolve(backend.spec, engine_version=tells))
    assert mute.engine_version() == ""
    assert "no metadata" in caplog.text
    long = attrs.evolve(backend, spec=attrs.evolve(backend.spec, engine_version=lambda: "x" * 1000))
    assert len(long.engine_version()) == 200


@pytest.mark.parametrize(
    ("plugin", "library"), [("mooncake", "mooncake-transfer-engine"), ("nixl", "nixl"), ("mori", "")]
)
def test_every_plugin_tells_its_engines_version_without_importing_it(plugin: str, library: str) -> None:
    module = __import__(f"pd_{plugin}.plugin", fromlist=["pd_backend"])
    assert module.pd_backend().engine_version().startswith(library)


def test_that_of_a_model_is_what_it_is_and_not_where_it_lies() -> None:
    shape = {"hidden_size": 64, "rope_scaling": None, "rope_theta": 1e4, "_name_or_path": "/a"}
    config = SimpleNamespace(**shape)
    one = model_fingerprint("/models/llama-3-8b/", config, revision=None, quantisation="fp8")
    assert one == Fingerprint(
        {"model": "llama-3-8b", "hidden_size": "64", "rope_theta": "10000.0", "quantisation": "fp8"}
    )
    assert one == model_fingerprint("meta/llama-3-8b", config, quantisation="fp8")
    assert one != model_fingerprint("meta/llama-3-8b", config, quantisation="fp8", revision="main")


def test_long_facts_of_a_model_differ_by_their_ends() -> None:
    def scaled(last: int) -> Fingerprint:
        return model_fingerprint("m", SimpleNamespace(rope_scaling={"factors": [1.5] * 100 + [last]}))

    assert scaled(1) == scaled(1)
    assert scaled(1) != scaled(2)
    assert model_fingerprint("a\tb", object()) == Fingerprint({"model": "a b"})
