"""The names and options of the NIXL backend, and what the real library makes of them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from distributions import run_python
from pd_nixl import build, plugin
from pd_nixl.config import (
    NixlOptions,
    Protocol,
    backend_params,
    native_environment,
    tcp_transports,
    ucx_settings,
)

from pdcore.config.structuring import Text, structure_options
from pdcore.contract.backend import AuxRequest, AuxRoute, ProtocolChoice, ProtocolRequest, Variant
from pdcore.errors import ConfigError, VariantConflictError
from pdcore.model import AuxTransport
from pdcore.selection.environment import check_conflicts, environment_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[2] / "plugins" / "pd-nixl"
SPEC = plugin.pd_backend()
VARIANTS = {variant.name: variant for variant in SPEC.variants}
WITHIN_A_HOST = ("shm", "posix", "sysv", "cma", "shm,self", "sm")


def choice(name: str, options: NixlOptions | None = None, **environ: str) -> ProtocolChoice:
    variant: Variant | None = VARIANTS.get(name)
    seen = environment_of(variant, {"PATH": "/usr/bin:/bin", **environ})
    return plugin.pd_choose_protocol(ProtocolRequest(SPEC, variant, options or NixlOptions(), seen))


def in_a_process(code: str, **environ: str) -> dict[str, object]:
    """What a program prints as JSON; the library belongs to a whole process, so each gets its own."""
    done = run_python("-c", f"import json, logging, os, sys\n{code}", path=[], environ=environ)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_the_names_and_their_protocols() -> None:
    assert {name: variant.protocol for name, variant in VARIANTS.items()} == {
        "nixl_tcp": "tcp",
        "nixl_libfabric": "libfabric",
        "nixl_posix": "posix",
    }
    assert SPEC.protocols == ("ucx", "tcp", "libfabric", "posix")
    assert [protocol.plugin for protocol in Protocol] == ["UCX", "UCX", "LIBFABRIC", "POSIX"]


def test_names_and_extras_are_registered() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pdcore.backends"] == dict.fromkeys(["nixl", *VARIANTS], "pd_nixl.plugin")
    assert project["optional-dependencies"] == {"cu12": ["nixl-cu12>=1.5,<2"], "cu13": ["nixl-cu13>=1.5,<2"]}


@pytest.mark.parametrize(
    ("variant", "environ", "options", "told"),
    [
        (
            "nixl_tcp",
            {"UCX_TLS": "shm"},
            {},
            [f"sets UCX_TLS={tcp_transports()}", "the environment has UCX_TLS=shm"],
        ),
        ("nixl_tcp", {"UCX_TLS": "tcp,cma"}, {}, [f"sets UCX_TLS={tcp_transports()}", "UCX_TLS=tcp,cma"]),
        ("nixl_tcp", {}, {"device_list": "mlx5_0"}, ["forbids the option device_list", "UCX_NET_DEVICES"]),
        ("nixl_libfabric", {}, {"engine_config": "A=1"}, ["only UCX takes it", "engine_config=A=1"]),
        ("nixl_libfabric", {}, {"num_workers": 2}, ["only UCX takes it", "num_workers=2"]),
    ],
)
def test_a_conflict_names_both_sides(
    variant: str, environ: dict[str, str], options: dict[str, object], told: list[str]
) -> None:
    with pytest.raises(VariantConflictError) as caught:
        check_conflicts(VARIANTS[variant], environ, options, lambda option: "code")
    assert all(words in caught.value.there_is for words in told), caught.value.there_is


def test_tcp_leaves_the_interfaces_to_the_user() -> None:
    environ = {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}
    check_conflicts(VARIANTS["nixl_tcp"], environ, {}, lambda option: "code")
    assert choice("nixl_tcp", UCX_NET_DEVICES="lo").protocol == "tcp"


def test_options_become_parameters_of_the_plugin() -> None:
    options = NixlOptions(num_workers=2, num_threads=4, split_batch_size=512, device_list="mlx5_0,mlx5_1")
    assert backend_params(options, Protocol.UCX) == {
        "num_workers": "2",
        "num_threads": "4",
        "split_batch_size": "512",
        "device_list": "mlx5_0,mlx5_1",
        "ucx_error_handling_mode": "peer",
    }
    assert backend_params(NixlOptions(num_threads=4), Protocol.LIBFABRIC) == {"num_threads": "4"}
    assert backend_params(NixlOptions(), Protocol.TCP) == {"ucx_error_handling_mode": "peer"}


def test_ucx_settings_are_listed_in_a_text() -> None:
    options = structure_options(NixlOptions, {"engine_config": Text("MAX_RMA_RAILS=1, RNDV_THRESH=8192")})
    assert ucx_settings(options) == {"MAX_RMA_RAILS": "1", "RNDV_THRESH": "8192"}
    assert ucx_settings(NixlOptions()) == {}
    params = backend_params(options, Protocol.UCX)
    assert params["engine_config"] == "MAX_RMA_RAILS=1,RNDV_THRESH=8192"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"error_handling": "none"}, "must be one of 'peer', is 'none'"),
        ({"num_workers": 0}, "must be >= 1"),
        ({"num_threads": -1}, "must be >= 0"),
        ({"split_batch_size": 0}, "must be >= 1"),
        ({"log_level": "LOUD"}, "must be one of 'TRACE', 'DEBUG', 'INFO', 'WARN', 'ERROR', 'FATAL'"),
        ({"device_list": "mlx5_0;rm"}, "must list devices like 'mlx5_0,mlx5_1', has 'mlx5_0;rm'"),
        ({"num_worker": 2}, "is unknown; did you mean 'num_workers'?"),
        ({"engine_config": 5}, "must be text, is 5"),
        ({"engine_config": "TLS=tcp"}, "has TLS: select nixl_tcp for TCP, or set UCX_TLS"),
        ({"engine_config": "NET_DEVICES=lo"}, "has NET_DEVICES: use device_list"),
        ({"engine_config": "UCX_RNDV_THRESH=1"}, "without UCX_, has 'UCX_RNDV_THRESH'"),
        ({"engine_config": "RNDV_THRESH"}, "must give RNDV_THRESH once and one value"),
        ({"engine_config": "A=1,A=2"}, "must give A once and one value"),
        ({"engine_config": "A=1,2"}, "must have settings like RNDV_THRESH, without UCX_, has '2'"),
    ],
)
def test_what_nixl_would_ignore_is_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structure_options(NixlOptions, options)
    assert reason in caught.value.problems[0].reason


def test_the_library_logs_to_stderr_and_leaves_out_the_module_that_crashes() -> None:
    assert native_environment(NixlOptions(), {}) == {
        "NIXL_LOG_LEVEL": "WARN",
        "UCX_LOG_FILE": "stderr",
        "UCX_LOG_LEVEL": "warn",
        "UCX_MODULES": "^efa",
    }


def test_what_the_user_set_for_the_library_stays() -> None:
    environ = {"NIXL_LOG_LEVEL": "DEBUG", "UCX_LOG_LEVEL": "error", "UCX_MODULES": "all"}
    assert native_environment(NixlOptions(), environ) == {"NIXL_LOG_LEVEL": "DEBUG", "UCX_LOG_FILE": "stderr"}
    options = NixlOptions(log_level="ERROR")
    assert native_environment(options, environ)["NIXL_LOG_LEVEL"] == "ERROR"


def test_a_name_is_chosen_when_its_plugin_was_created() -> None:
    for name, protocol in {"nixl": "ucx", "nixl_tcp": "tcp"}.items():
        chosen = choice(name)
        assert chosen.protocol == protocol
        assert chosen.verdicts[0].reason == "the NIXL plugin UCX can be created"
    verdicts = {verdict.protocol: verdict for verdict in choice("nixl").verdicts}
    assert list(verdicts) == ["ucx", "tcp", "libfabric", "posix"]
    assert verdicts["tcp"].reason == "only by its name, nixl_tcp"


def test_a_listed_plugin_that_cannot_be_created_is_refused_with_the_reason() -> None:
    refused = build.creation_refusal("INFINIA", {}, {}, native_environment(NixlOptions(), {}))
    assert re.match(r"lib\S+\.so\S*: cannot open shared object file", refused), refused


def test_libfabric_is_refused_with_the_reason_that_its_plugin_gives() -> None:
    refused = build.creation_refusal("LIBFABRIC", {}, {}, native_environment(NixlOptions(), {}))
    chosen = choice("nixl_libfabric")
    assert chosen.protocol == (None if refused else "libfabric")
    assert chosen.verdicts[0].reason == (refused or "the NIXL plugin LIBFABRIC can be created")


def test_posix_is_always_refused() -> None:
    chosen = choice("nixl_posix")
    assert chosen.protocol is None
    assert chosen.verdicts[0].reason == (
        "NIXL's POSIX is a file backend: it has no peers and no notifications"
    )
    assert chosen.fix == "select nixl, nixl_tcp or nixl_libfabric"


@pytest.mark.parametrize("transports", WITHIN_A_HOST)
def test_transports_within_a_host_alone_are_refused(transports: str) -> None:
    chosen = choice("nixl", UCX_TLS=transports)
    assert chosen.protocol is None
    assert chosen.verdicts[0].reason.startswith(f"UCX_TLS={transports} has only transports within a host")
    assert chosen.fix == "unset UCX_TLS, or add tcp to it"


@pytest.mark.parametrize(
    ("options", "environ", "reason"),
    [
        (NixlOptions(), {"UCX_TLS": "^tcp"}, "no active messages transport"),
        (NixlOptions(device_list="nope0"), {}, "network device 'nope0:1' is not available"),
        (NixlOptions(engine_config="RNDV_THRESH=abc"), {}, "Invalid value for RNDV_THRESH: 'abc'"),
        (NixlOptions(engine_config="RNDV_TRESH=1,MAX_RMA_RAILS=1"), {}, "UCX has no setting RNDV_TRESH"),
        (NixlOptions(engine_config="RNDV_THRESH=1"), {"UCX_RNDV_THRESH": "2"}, "UCX_RNDV_THRESH=2 keeps 1"),
        (NixlOptions(device_list="mlx5_0"), {"UCX_NET_DEVICES": "lo"}, "UCX_NET_DEVICES=lo keeps mlx5_0"),
    ],
)
def test_what_ucx_does_not_take_is_refused(
    options: NixlOptions, environ: dict[str, str], reason: str
) -> None:
    chosen = choice("nixl", options, **environ)
    assert chosen.protocol is None
    assert chosen.verdicts[0].reason.startswith(reason)
    assert "UCX_" in chosen.fix


def test_aux_rows_travel_through_the_engine() -> None:
    request = AuxRequest("ucx", None, NixlOptions(), SPEC.capabilities)
    assert plugin.pd_aux_transport(request) == AuxRoute(AuxTransport.ENGINE)


def test_the_facts_tell_what_can_be_created() -> None:
    facts = plugin.facts()
    assert "nixl-cu12 1." in facts["wheel"]
    assert "plugin LIBFABRIC" in facts
    assert facts["NIXL_LOG_LEVEL"] == "WARN"
    assert facts["plugin UCX"] == "can be created"
    assert facts["plugin POSIX"] == "can be created"


def test_a_version_that_cannot_be_used_is_named() -> None:
    assert build.refusal("nixl_cu12._api") == ""
    assert re.fullmatch(r"attrs [\d.]+ is installed, >=1.5,<2 is needed", build.refusal("attrs"))
    assert build.refusal("pdx_no._api").endswith("no metadata of pdx-no that tell its version")


@pytest.mark.parametrize(
    ("imported", "tried"),
    [
        ([], ["nixl_cu13._api", "nixl_cu12._api"]),
        (["torch"], ["nixl._api", "nixl_cu13._api", "nixl_cu12._api"]),
        (["nixl_cu12._api"], ["nixl_cu12._api"]),
    ],
)
def test_a_package_that_would_import_torch_is_not_tried(
    tmp_path: Path, imported: list[str], tried: list[str]
) -> None:
    for package in ("nixl", "nixl_cu13", "torch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    code = f"""
import importlib, json, sys
from pd_nixl.build import modules
for name in {imported}:
    importlib.import_module(name)
print(json.dumps([modules(), "nixl" in sys.modules]))
"""
    done = run_python("-c", code, path=[str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [tried, False]


def test_a_folder_of_the_name_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "nixl_cu13").mkdir()
    code = "from pd_nixl.build import modules; print(modules())"
    done = run_python("-c", code, path=[str(tmp_path)])
    assert done.stdout.strip() == "('nixl_cu12._api',)", done.stderr


def test_selecting_imports_no_engine_library() -> None:
    told = in_a_process("""
from pdcore.selection.select import select
backend = select("nixl_tcp")
loaded = [m for m in sys.modules if m.split(".")[0] in ("nixl", "nixl_cu12", "torch")]
print(json.dumps({"protocol": backend.protocol, "loaded": loaded}))
""")
    assert told == {"protocol": "tcp", "loaded": []}


LOADED = """
from pd_nixl.config import NixlOptions
from pd_nixl.library import load
from pdcore.errors import EngineError
"""


@pytest.mark.parametrize(
    ("vendor", "kind", "transports"),
    [("0x10de", "0x030200", "tcp,cuda_copy"), ("0x10de", "0x020700", "tcp"), ("0x1af4", "0x030000", "tcp")],
)
def test_tcp_on_a_machine_with_a_gpu_reaches_its_memory(
    tmp_path: Path, vendor: str, kind: str, transports: str
) -> None:
    device = tmp_path / "0000:00:05.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    assert tcp_transports(tmp_path) == transports


def test_loading_keeps_torch_out_and_stdout_free() -> None:
    told = in_a_process(
        f"""{LOADED}
before = dict(os.environ), logging.raiseExceptions
library = load(NixlOptions(log_level="INFO"))
library.agent("a", "UCX", {{"ucx_error_handling_mode": "peer"}})
logging.getLogger("nixl").error("to stderr")
print(json.dumps({{
    "name": library.module.__package__,
    "torch": "torch" in sys.modules,
    "same": before == (dict(os.environ), logging.raiseExceptions),
    "again": load(NixlOptions()) is library,
    "errors": sorted(library.errors),
    "disconnect": [kind.__module__ + "." + kind.__name__ for kind in [library.errors["RemoteDisconnect"]]],
    "complete": set(library.errors.values()) == set(library.transport_errors),
}}))
""",
        UCX_MODULES="^efa",
    )
    errors = told.pop("errors")
    assert isinstance(errors, list)
    assert {"Backend", "InvalidParam", "Mismatch", "NotFound", "RemoteDisconnect"} <= set(errors)
    assert told == {
        "name": "nixl_cu12",
        "torch": False,
        "same": True,
        "again": True,
        "disconnect": ["nixl_cu12._bindings.nixlRemoteDisconnectError"],
        "complete": True,
    }


def test_a_module_that_is_loaded_already_is_used() -> None:
    told = in_a_process(f"""{LOADED}
import nixl_cu12._api as theirs
print(json.dumps({{"theirs": load(NixlOptions()).module is theirs}}))
""")
    assert told == {"theirs": True}


def test_a_log_level_that_comes_too_late_and_a_wrong_backend_are_refused() -> None:
    told = in_a_process(f"""{LOADED}
library = load(NixlOptions())
messages = {{}}
for name, fails in {{
    "level": lambda: load(NixlOptions(log_level="DEBUG")),
    "backend": lambda: library.agent("a", "LIBFABRIC", {{}}),
}}.items():
    try:
        fails()
    except EngineError as error:
        messages[name] = [error.happened, error.there_is]
print(json.dumps(messages))
""")
    assert told == {
        "level": [
            "NIXL is loaded already, and reads its log level only then",
            "WARN then, log_level=DEBUG now",
        ],
        "backend": [
            "NIXL could not create the backend LIBFABRIC",
            "nixlNotFoundError: NIXL_ERR_NOT_FOUND; parameters {}",
        ],
    }


def test_an_engine_leaves_the_process_to_exit_without_a_crash() -> None:
    told = in_a_process("""
from pdcore.model import Deadline, Role, new_incarnation
from pdcore.selection.select import select
told = {}
for name in ("nixl", "nixl_tcp"):
    engine = select(name).start_engine(
        role=Role.PREFILL, incarnation=new_incarnation(), host="127.0.0.1", deadline=Deadline.after(60)
    )
    told[name] = [engine.effective_transport.name, engine.effective_transport.certainty.value]
    engine.close()
told["set"] = [name for name in ("UCX_MODULES", "UCX_TLS", "NIXL_LOG_LEVEL") if name in os.environ]
print(json.dumps(told))
""")
    assert told == {"nixl": ["ucx", "inferred"], "nixl_tcp": ["tcp", "inferred"], "set": []}
