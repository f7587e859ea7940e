from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Iterator, Mapping

import pytest
from distributions import EVERY_DIST, folders, install, run_python

from pdcore.config.records import Config
from pdcore.config.sources import load_config
from pdcore.contract.backend import AuxRoute
from pdcore.contract.engine import TransferEngine
from pdcore.errors import (
    ArgumentError,
    ConfigError,
    ContractError,
    EngineError,
    SelectionError,
    TransportMismatchError,
    VariantConflictError,
)
from pdcore.model import Certainty, Deadline, PeerIdentity, Role, new_incarnation
from pdcore.selection.discovery import Candidate, Problem
from pdcore.selection.select import Backend, explain, select


@pytest.fixture(autouse=True)
def every_dist(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, *EVERY_DIST)


@pytest.fixture
def good_is_reset() -> Iterator[None]:
    import pd_good

    pd_good.engines.clear()
    pd_good.starting.clear()
    pd_good.release.clear()
    yield
    pd_good.release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("pdcore-engine-start-"):
            thread.join(60)


def good(name: str = "good", environ: Mapping[str, str] | None = None, **options: object) -> Backend:
    return select(name, options, environ=environ or {})


def start(backend: Backend, seconds: float = 60.0, transport: str | None = None) -> TransferEngine:
    return backend.start_engine(
        role=Role.PREFILL,
        incarnation=new_incarnation(),
        host="127.0.0.1",
        deadline=Deadline.after(seconds),
        require_transport=transport,
    )


def test_the_message_lists_every_installed_name_with_its_verdict_and_a_fix() -> None:
    missing = Problem("libibverbs.so.1 is missing", "apt-get install libibverbs1")
    error = explain(
        "mooncake",
        [
            (Candidate("local", "pdcore", "0.1.0", "pdcore.local.plugin"), None),
            (Candidate("mooncake", "pd-mooncake", "0.1.0", "pd_mooncake.plugin"), missing),
            (Candidate("mooncake_tcp", "pd-mooncake", "0.1.0", "pd_mooncake.plugin"), missing),
        ],
    )
    assert str(error) == (
        "backend 'mooncake' is installed but cannot run here\n"
        "  mooncake      pd-mooncake 0.1.0   libibverbs.so.1 is missing\n"
        "  mooncake_tcp  pd-mooncake 0.1.0   libibverbs.so.1 is missing\n"
        "  local         pdcore 0.1.0        ready\n"
        "  fix: apt-get install libibverbs1        more: pdcore doctor mooncake"
    )
    assert [(row.name, row.verdict == "ready") for row in error.rows] == [
        ("mooncake", False),
        ("mooncake_tcp", False),
        ("local", True),
    ]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_unknown_name_is_told_the_nearest_one() -> None:
    candidate = Candidate("local", "pdcore", "0.1.0", "pdcore.local.plugin")
    assert str(explain("locla", [(candidate, None)])) == (
        "no backend is named 'locla'\n"
        "  local  pdcore 0.1.0   ready\n"
        "  fix: did you mean 'local'?        more: pdcore backends"
    )
    assert str(explain("far_tcp", [])) == (
        "no backend is named 'far_tcp'\n"
        "  (no backend is installed)\n"
        "  fix: pip install the distribution that registers 'far_tcp', by custom pd-far"
        "        more: pdcore backends"
    )


@pytest.mark.parametrize(
    ("name", "verdict", "fix"),
    [
        (
            "import_error",
            "pd_import_error cannot be imported: "
            "ImportError: libfixture.so.1: cannot open shared object file",
            "pip install --force-reinstall pd-import-error, "
            "or see the traceback of: python -c 'import pd_import_error'",
        ),
        (
            "exits",
            "pd_exits cannot be imported: SystemExit: 3",
            "pip install --force-reinstall pd-exits, or see the traceback of: python -c 'import pd_exits'",
        ),
        (
            "wrong_argument",
            "pd_wrong_argument does not fit the hook contract: "
            "pd_init_engine has a wrong argument node (it takes: request)",
            "pip install --upgrade pdcore pd-wrong-argument",
        ),
        (
            "unknown_hook",
            "pd_unknown_hook does not fit the hook contract: "
            "unknown hook pd_choose_protocols; did you mean 'pd_choose_protocol'?",
            "pip install --upgrade pdcore pd-unknown-hook",
        ),
        (
            "twin",
            "the name is claimed by pd-twin-a 1.0.0 and by pd-twin-b 1.0.0",
            "pip uninstall pd-twin-a or pd-twin-b, or name one of them in PDCORE_DISABLE",
        ),
        (
            "too_new",
            "pd-too-new was written for hook contract 2: this pdcore speaks 1",
            "pip install --upgrade pdcore",
        ),
        (
            "too_old",
            "pd-too-old was written for hook contract 0: this pdcore speaks 1",
            "pip install --upgrade pd-too-old",
        ),
        (
            "misfit",
            "needs pdcore>=9, but 0.1.0 is installed; needs pd-absent, which is not installed",
            "pip install 'pdcore>=9' 'pd-absent>=2'",
        ),
        ("no_library", "libfixture.so.1 is missing", "apt-get install libfixture1"),
        (
            "bad_probe",
            "the probe of 'bad_probe' failed: SystemExit: 4",
            "report it to the authors of pd-bad-probe",
        ),
        (
            "good_undeclared",
            "pd_good declares no backend or variant 'good_undeclared': it declares good, good_tcp",
            "report it to the authors of pd-good",
        ),
    ],
)
def test_a_backend_that_cannot_be_used_says_why_and_stops_no_other(name: str, verdict: str, fix: str) -> None:
    with pytest.raises(SelectionError) as caught:
        select(name, environ={})
    lines = str(caught.value).splitlines()
    assert lines[0] == f"backend {name!r} is installed but cannot run here"
    assert lines[1].startswith(f"  {name} ")
    assert lines[1].endswith(f"   {verdict}")
    assert lines[-1] == f"  fix: {fix}        more: pdcore doctor {name}"
    verdicts = {row.name: row.verdict for row in caught.value.rows}
    assert verdicts["good"] == "ready"
    assert verdicts["local"] == "ready"
    assert {"exits", "twin", "no_library", "misfit"} <= set(verdicts)
    assert select("good", environ={}).name == "good"


def test_broken_plugins_do_not_stop_the_process_that_selects_another() -> None:
    code = """
import json
from pdcore.selection.select import select
print(json.dumps([select(name).protocol for name in ("local", "good", "good_tcp")]))
"""
    done = run_python("-c", code, path=folders(*EVERY_DIST))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1:] == ["rdma", "tcp"]
    assert "observer 'broken' is left out: pd_observer_broken cannot be imported" in done.stderr


def test_only_the_selected_plugin_is_imported() -> None:
    code = """
import sys
from pdcore.selection.select import select
select("good")
print(sorted(name for name in sys.modules if name.startswith("pd_")))
"""
    done = run_python("-c", code, path=folders("good", "too_new", "no_library"))
    assert done.stdout.strip() == "['pd_good']", done.stderr


def test_a_protocol_that_cannot_be_used_is_refused_before_any_engine_starts() -> None:
    with pytest.raises(SelectionError) as caught:
        good(without_rdma=True)
    assert caught.value.rows[0].verdict == "rdma: no RDMA device"
    assert caught.value.to_do == "select good_tcp"


def test_the_switches_of_the_environment_apply_to_selection() -> None:
    with pytest.raises(SelectionError) as caught:
        select("good", environ={"PDCORE_DISABLE": "pd-good"})
    assert caught.value.rows[0].verdict == "switched off by PDCORE_DISABLE=pd-good"


def test_wrong_options_are_all_named_with_where_they_were_set() -> None:
    loaded = load_config(
        code={"backend": "good", "backend_options": {"certainty": "likely"}},
        environ={"PDCORE_GOOD_THREADS": "no", "PDCORE_GOOD_DEVCE": "x"},
        plugin_prefixes=["good"],
    )
    with pytest.raises(ConfigError) as caught:
        select("good", loaded.config.backend_options, environ={}, origins=loaded.origins)
    assert [(p.path, p.origin) for p in caught.value.problems] == [
        ("backend_options.threads", "PDCORE_GOOD_THREADS"),
        ("backend_options.certainty", "code"),
        ("backend_options.devce", "PDCORE_GOOD_DEVCE"),
    ]


def test_a_configuration_names_its_backend_and_options_in_one_place() -> None:
    environ = {"PDCORE_BACKEND": "good_tcp", "PDCORE_GOOD_THREADS": "3"}
    loaded = load_config(environ=environ, plugin_prefixes=["good"])
    for what in (loaded, Config(backend="good_tcp", backend_options={"threads": 3})):
        backend = select(what, environ={})
        assert (backend.name, backend.options.threads) == ("good_tcp", 3)  # type: ignore[attr-defined]
    wrong = load_config(environ=environ | {"PDCORE_GOOD_THREADS": "no"}, plugin_prefixes=["good"])
    with pytest.raises(ConfigError) as caught:
        select(wrong, environ={})
    assert caught.value.problems[0].origin == "PDCORE_GOOD_THREADS"


def test_a_configuration_that_names_no_backend_selects_none() -> None:
    with pytest.raises(ConfigError) as caught:
        select(load_config(environ={}))
    (problem,) = caught.value.problems
    assert (problem.path, problem.origin) == ("backend", "default")
    assert problem.reason.startswith("must be named where a configuration selects: set PDCORE_BACKEND, or")


def test_options_beside_a_configuration_are_refused() -> None:
    with pytest.raises(ArgumentError, match="the options of a backend are named twice"):
        select(Config(backend="good"), {})


def test_a_variant_brings_its_protocol_and_defaults_that_may_be_overridden() -> None:
    import pd_good

    backend = good("good_tcp")
    assert backend.protocol == "tcp"
    assert backend.options == pd_good.Options(threads=4)
    assert good("good_tcp", threads=2).options == pd_good.Options(threads=2)


def test_what_contradicts_a_variant_is_named_from_both_sides() -> None:
    environ = {"GOOD_FORCE_TCP": "0", "GOOD_DEVICE": "mlx5_0", "GOOD_FORCE_HCA": "1"}
    loaded = load_config(
        environ={"PDCORE_GOOD_DEVICE": "mlx5_1", "PDCORE_BACKEND": "good_tcp"}, plugin_prefixes=["good"]
    )
    with pytest.raises(VariantConflictError) as caught:
        select("good_tcp", loaded.config.backend_options, environ=environ, origins=loaded.origins)
    assert str(caught.value) == (
        "good_tcp (tcp) and what was set by hand contradict each other\n"
        "  there is: the variant sets GOOD_FORCE_TCP=1, the environment has GOOD_FORCE_TCP=0; "
        "the variant clears GOOD_DEVICE, the environment has GOOD_DEVICE=mlx5_0; "
        "the variant forbids GOOD_FORCE_HCA (it asks for RDMA), the environment has GOOD_FORCE_HCA=1; "
        "the variant forbids the option device (TCP has no device), PDCORE_GOOD_DEVICE has device=mlx5_1\n"
        "  to do: unset GOOD_FORCE_TCP, unset GOOD_DEVICE, unset GOOD_FORCE_HCA, "
        "take device out of PDCORE_GOOD_DEVICE, or select another variant"
    )


def test_an_environment_that_agrees_with_the_variant_is_no_conflict() -> None:
    assert good("good_tcp", {"GOOD_FORCE_TCP": "1"}).protocol == "tcp"


def test_an_answer_of_a_wrong_type_is_a_broken_contract() -> None:
    with pytest.raises(ContractError, match="pd_choose_protocol returned a wrong type"):
        select("wrong_type", environ={})


@pytest.mark.usefixtures("good_is_reset")
def test_the_variants_environment_holds_while_the_engine_starts_and_is_restored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import pd_good

    monkeypatch.delenv("GOOD_FORCE_TCP", raising=False)
    monkeypatch.setenv("GOOD_DEVICE", "mlx5_0")
    caplog.set_level("INFO", "pdcore.environment")
    engine = start(good("good_tcp"))
    assert isinstance(engine, pd_good.GoodEngine)
    assert engine.environment == {"GOOD_FORCE_TCP": "1", "GOOD_DEVICE": None}
    assert "GOOD_FORCE_TCP" not in os.environ
    assert os.environ["GOOD_DEVICE"] == "mlx5_0"
    records = [record for record in caplog.records if record.name == "pdcore.environment"]
    assert [record.getMessage() for record in records] == [
        "GOOD_FORCE_TCP=1 is set while the engine starts, by variant good_tcp",
        "GOOD_DEVICE is cleared while the engine starts, by variant good_tcp",
    ]


@pytest.mark.usefixtures("good_is_reset")
def test_a_failed_start_restores_the_environment_too() -> None:
    with pytest.raises(EngineError, match="the good engine cannot start"):
        start(good("good_tcp", start="never"))
    assert "GOOD_FORCE_TCP" not in os.environ


@pytest.mark.usefixtures("good_is_reset")
def test_an_engine_that_starts_too_late_is_an_error_and_is_closed_when_it_comes() -> None:
    import pd_good

    with pytest.raises(EngineError) as caught:
        start(good(start="late"), seconds=0.05)
    assert str(caught.value) == (
        "the engine of 'good' did not start before its deadline\n"
        "  there is: pd_init_engine has not returned; it goes on in thread pdcore-engine-start-good\n"
        "  to do: raise timeouts.engine_start, or look for what hangs: pdcore doctor good"
    )
    late = [t for t in threading.enumerate() if t.name == "pdcore-engine-start-good"]
    pd_good.release.set()
    for thread in late:
        thread.join(60)
    assert [engine.closed.is_set() for engine in pd_good.engines] == [True]


@pytest.mark.usefixtures("good_is_reset")
def test_two_starts_do_not_interleave() -> None:
    import pd_good

    slow, other = good("good_tcp", start="late"), good()
    first = threading.Thread(target=start, args=(slow,), name="first-start")
    first.start()
    assert pd_good.starting.wait(60)
    with pytest.raises(EngineError, match="another engine of this process is still starting"):
        start(other, seconds=0.05)
    pd_good.release.set()
    first.join(60)
    engine = start(other)
    assert isinstance(engine, pd_good.GoodEngine)
    assert engine.environment == {"GOOD_FORCE_TCP": None, "GOOD_DEVICE": None}


@pytest.mark.usefixtures("good_is_reset")
@pytest.mark.parametrize("certainty", [Certainty.VERIFIED, Certainty.INFERRED])
def test_a_required_transport_that_matches_is_accepted(certainty: Certainty) -> None:
    engine = start(good("good_tcp", certainty=certainty), transport="tcp")
    assert engine.effective_transport.name == "tcp"


@pytest.mark.usefixtures("good_is_reset")
@pytest.mark.parametrize(
    ("certainty", "required"), [(Certainty.UNKNOWN, "tcp"), (Certainty.VERIFIED, "rdma")]
)
def test_an_engine_not_known_to_run_on_the_required_transport_is_refused_and_closed(
    certainty: Certainty, required: str
) -> None:
    import pd_good

    with pytest.raises(TransportMismatchError) as caught:
        start(good("good_tcp", certainty=certainty), transport=required)
    assert str(caught.value) == (
        f"the engine of 'good_tcp' is not known to run on {required!r}, which require_transport asks for\n"
        f"  there is: 'tcp', {certainty.value} (it says so)\n"
        f"  to do: see what keeps it from {required!r} with: pdcore doctor good_tcp; "
        "or drop require_transport"
    )
    assert pd_good.engines[-1].closed.is_set()


@pytest.mark.usefixtures("good_is_reset")
def test_aux_routes_that_cannot_work_are_refused() -> None:
    backend = good()
    assert backend.aux_route(start(backend)) == AuxRoute()
    device = good(aux="tcp_device")
    with pytest.raises(ContractError) as on_device:
        device.aux_route(start(device))
    assert str(on_device.value) == (
        "pd-good 1.0.0: its pd_aux_transport wants aux over TCP from device memory\n"
        "  there is: aux buffers on cuda:1, which TCP cannot read\n"
        "  to do: report it to the authors of pd-good"
    )
    through = good(aux="engine")
    with pytest.raises(ContractError, match="wants aux through the engine"):
        through.aux_route(start(through))


def test_a_successful_heartbeat_reaches_the_hooks() -> None:
    good().heartbeat_success(PeerIdentity(Role.DECODE, new_incarnation(), "127.0.0.1:1"))
