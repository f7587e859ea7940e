"""The names and options of the MORI-IO backend, and what it says where the library is missing or broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from distributions import run_python
from pd_mori import build, plugin
from pd_mori.address import ask, check_host
from pd_mori.config import MoriOptions, Protocol, backend_config, contradictions, native_environment

from pdcore.config.records import TransferModel
from pdcore.config.sources import load_config
from pdcore.config.structuring import structure_options
from pdcore.contract.backend import AuxRequest, AuxRoute, InitEngineRequest, ProtocolChoice, ProtocolRequest
from pdcore.errors import ConfigError, EngineError, VariantConflictError
from pdcore.model import AuxTransport, Deadline, Role, new_incarnation
from pdcore.selection.environment import check_conflicts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[2] / "plugins" / "pd-mori"
SPEC = plugin.pd_backend()
VARIANTS = {variant.name: variant for variant in SPEC.variants}


def choice(name: str, options: MoriOptions | None = None, **environ: str) -> ProtocolChoice:
    request = ProtocolRequest(SPEC, VARIANTS.get(name), options or MoriOptions(), environ)
    return plugin.pd_choose_protocol(request)


def test_the_names_and_their_protocols() -> None:
    assert {name: variant.protocol for name, variant in VARIANTS.items()} == {
        "mori_xgmi": "xgmi",
        "mori_tcp": "tcp",
    }
    assert SPEC.protocols == ("rdma", "xgmi", "tcp")


def test_names_and_extras_are_registered() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pdcore.backends"] == dict.fromkeys(["mori", *VARIANTS], "pd_mori.plugin")
    [engine] = project["optional-dependencies"]["engine"]
    assert engine.startswith("amd_mori>=1.2.2,<1.3; ")
    assert all(f"python_version == '{version}'" in engine for version in build.PYTHONS)


def test_inline_is_the_transfer_model_unless_another_is_asked_for() -> None:
    assert SPEC.transfer_model is TransferModel.INLINE
    assert SPEC.capabilities.asynchronous


def test_tcp_is_refused_for_mori_has_no_implementation() -> None:
    chosen = choice("mori_tcp")
    assert chosen.protocol is None
    assert chosen.verdicts[0].reason == "MORI's TCP is a name in its enum without an implementation"
    assert chosen.fix == "select mori, or another backend for TCP: mooncake_tcp, nixl_tcp"


def test_options_become_fields_of_moris_configuration_or_variables() -> None:
    assert backend_config(MoriOptions()) == {
        "qp_per_transfer": 4,
        "enable_transfer_chunking": True,
        "enable_notification": False,
    }
    options = MoriOptions(
        qp_per_transfer=2,
        post_batch_size=16,
        num_worker_threads=3,
        num_nics_per_transfer=2,
        enable_transfer_chunking=False,
        chunk_bytes=4096,
        max_chunks_per_transfer=8,
        ib_device="mlx5_0,mlx5_1",
        cp_timeout_ms=500,
        log_level="info",
    )
    assert backend_config(options) == {
        "qp_per_transfer": 2,
        "post_batch_size": 16,
        "num_worker_threads": 3,
        "num_nics_per_transfer": 2,
        "enable_transfer_chunking": False,
        "chunk_bytes": 4096,
        "max_chunks_per_transfer": 8,
        "enable_notification": False,
    }
    owned = {"MORI_IO_ENABLE_NOTIFICATION": "0", "MORI_DISABLE_AUTO_XGMI": "1"}
    assert native_environment(options, {}) == {
        **owned,
        "MORI_RDMA_DEVICES": "mlx5_0,mlx5_1",
        "MORI_IO_CP_TIMEOUT_MS": "500",
        "MORI_GLOBAL_LOG_LEVEL": "info",
    }
    assert native_environment(MoriOptions(), {}) == {
        **owned,
        "MORI_IO_CP_TIMEOUT_MS": "1000",
        "MORI_GLOBAL_LOG_LEVEL": "critical",
    }
    kept = {"MORI_IO_CP_TIMEOUT_MS": "300", "MORI_GLOBAL_LOG_LEVEL": "warn"}
    assert native_environment(MoriOptions(), kept) == owned


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"qp_per_transfer": 0}, "must be >= 1"),
        ({"chunk_bytes": 4095}, "must be >= 4096"),
        ({"cp_timeout_ms": 99}, "must be >= 100"),
        ({"cp_timeout_ms": 5001}, "must be <= 5000"),
        ({"ib_device": "mlx5_0;rm"}, "must list devices like 'mlx5_0,mlx5_1' or '^mlx5_0', has 'mlx5_0;rm'"),
        ({"log_level": "loud"}, "must be one of 'trace', 'debug', 'info', 'warn', 'error', 'critical'"),
        ({"qp_per_transfers": 2}, "is unknown; did you mean 'qp_per_transfer'?"),
    ],
)
def test_options_that_mori_would_not_take_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structure_options(MoriOptions, options)
    assert reason in caught.value.problems[0].reason


@pytest.mark.parametrize(
    ("options", "environ", "told"),
    [
        (
            MoriOptions(qp_per_transfer=4),
            {"MORI_IO_QP_PER_TRANSFER": "2"},
            "MORI_IO_QP_PER_TRANSFER=2 contradicts 4",
        ),
        (
            MoriOptions(enable_transfer_chunking=True),
            {"MORI_IO_ENABLE_CHUNKING": "0"},
            "MORI_IO_ENABLE_CHUNKING=0 contradicts 1",
        ),
        (MoriOptions(ib_device="a"), {"MORI_RDMA_DEVICES": "b"}, "MORI_RDMA_DEVICES=b contradicts a"),
        (MoriOptions(), {"MORI_IO_ENABLE_NOTIFICATION": "1"}, "MORI_IO_ENABLE_NOTIFICATION=1 contradicts 0"),
        (MoriOptions(), {"MORI_DISABLE_AUTO_XGMI": "0"}, "MORI_DISABLE_AUTO_XGMI=0 contradicts 1"),
        (MoriOptions(), {"MORI_IO_CP_TIMEOUT_MS": "0"}, "MORI_IO_CP_TIMEOUT_MS=0 is not within 100..5000"),
        (MoriOptions(), {"MORI_IO_CP_TIMEOUT_MS": "x"}, "MORI_IO_CP_TIMEOUT_MS=x is not within 100..5000"),
    ],
)
def test_a_variable_that_overrules_what_is_needed_is_refused(
    options: MoriOptions, environ: dict[str, str], told: str
) -> None:
    chosen = choice("mori", options, **environ)
    assert chosen.protocol is None
    assert chosen.verdicts[0].reason.startswith(told)
    assert chosen.fix == f"unset {next(iter(environ))}, or take it out of the options"


def test_variables_that_say_the_same_are_no_contradiction() -> None:
    environ = {"MORI_IO_QP_PER_TRANSFER": "4", "MORI_IO_CP_TIMEOUT_MS": "800", "MORI_IO_SL": "3"}
    assert contradictions(MoriOptions(qp_per_transfer=4), environ) == {}


def test_xgmi_takes_no_option_of_rdma() -> None:
    with pytest.raises(VariantConflictError) as caught:
        check_conflicts(VARIANTS["mori_xgmi"], {}, {"ib_device": "mlx5_0"}, lambda option: "code")
    assert "only RDMA uses it" in caught.value.there_is


@pytest.mark.parametrize(
    ("options", "protocol", "transport"),
    [
        (MoriOptions(), Protocol.RDMA, AuxTransport.TCP),
        (MoriOptions(aux_rdma=True), Protocol.RDMA, AuxTransport.ENGINE),
        (MoriOptions(), Protocol.XGMI, AuxTransport.TCP),
    ],
)
def test_aux_rows_travel_over_tcp_unless_the_option_says_otherwise(
    options: MoriOptions, protocol: Protocol, transport: AuxTransport
) -> None:
    request = AuxRequest(protocol.value, None, options, SPEC.capabilities)
    assert plugin.pd_aux_transport(request) == AuxRoute(transport)


def test_the_variable_for_aux_rows_is_an_option_of_this_backend() -> None:
    environ = {"PDCORE_BACKEND": "mori", "PDCORE_MORI_AUX_RDMA": "1"}
    config = load_config(environ=environ, plugin_prefixes=["mori"]).config
    assert structure_options(MoriOptions, config.backend_options).aux_rdma


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("localhost", "'localhost': Expected 4 octets"),
        ("::1", "'::1': Expected 4 octets"),
        ("0.0.0.0", "it means all addresses"),
        ("192.0.2.1", "Cannot assign requested address"),
    ],
)
def test_a_host_that_mori_would_end_the_process_for_is_refused(host: str, told: str) -> None:
    with pytest.raises(EngineError, match="MORI needs an IPv4 address of this machine") as caught:
        check_host(host)
    assert told in caught.value.there_is
    check_host("127.0.0.1")


def test_a_port_that_nobody_listens_at_is_told() -> None:
    assert isinstance(ask("127.0.0.1", 1, Deadline.after(5)), ConnectionRefusedError)


# --- without the library, or with one that does not load ----------------------------------------------------

DOCTOR = """
import json, os, sys
from pdcore.cli import main
code = main(["doctor", "mori", "--json"])
loaded = [name for name in sys.modules if name.split(".")[0] in ("mori", "torch", "libmori_pybinds")]
print(json.dumps([code, loaded]), file=sys.stderr)
"""
OF_MORI = """
import json, sys
from pd_mori import build
from pd_mori.config import MoriOptions
"""


def install(folder: Path, code: str) -> list[str]:
    """Make a package ``mori`` whose module ``mori.io`` is this code; return the path to it."""
    (folder / "mori" / "io").mkdir(parents=True)
    (folder / "mori" / "__init__.py").touch()
    (folder / "mori" / "io" / "__init__.py").write_text(code)
    about = folder / "amd_mori-1.2.4.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: amd_mori\nVersion: 1.2.4\n")
    return [str(folder)]


def test_the_doctor_names_the_wheel_the_pythons_and_the_libraries_and_imports_nothing() -> None:
    done = run_python("-c", DOCTOR, path=[])
    [mori] = json.loads(done.stdout)["backends"]
    assert json.loads(done.stderr.splitlines()[-1]) == [1, []], done.stderr
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert mori["verdict"].startswith("the wheel amd_mori is not installed")
    if python not in build.PYTHONS:
        assert f"it exists for Python 3.10 and 3.12, and this is {python}" in mori["verdict"]
        assert mori["fix"].startswith("take a Python 3.10 or 3.12: pip install 'pd-mori[engine]'")
    assert "libamdhip64.so.7" in mori["verdict"]
    assert "install ROCm 7" in mori["fix"]
    assert mori["facts"]["wheel"].startswith("none (amd_mori, for Python 3.10 and 3.12)")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('libpci.so.3: cannot open shared object file')", "libamdhip64.so.7"),
        ("import torch_that_is_not_there", "No module named 'torch_that_is_not_there'"),
        ("import os; os.abort()", "its import ends with status -6"),
    ],
)
def test_a_library_that_does_not_load_is_told_and_harms_nobody(
    tmp_path: Path, code: str, reason: str
) -> None:
    program = f"{OF_MORI}\nfound = build.look()\nprint(json.dumps([found.error, build.probe().reason]))"
    done = run_python("-c", program, path=install(tmp_path, code))
    assert done.returncode == 0, done.stderr
    error, told = json.loads(done.stdout)
    assert reason in f"{error} {told}"


MORI = """
class Anything:
    def __init__(self, *given, **fields): ...
    def create_backend(self, kind, config): {create}
class BackendType: RDMA = 2
IOEngine = IOEngineConfig = RdmaBackendConfig = Anything
import ctypes
class Hip:
    def hipGetDeviceCount(self, count): return 0
ctypes.CDLL = lambda name: Hip()
"""


def test_no_engine_is_created_here_that_could_not_be_in_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin, "try_engine", lambda *given, **named: build.Machine("no GPU", 0))
    request = InitEngineRequest(
        Role.PREFILL, new_incarnation(), "rdma", None, MoriOptions(), "127.0.0.1", Deadline.after(5)
    )
    with pytest.raises(
        EngineError, match="MORI cannot start an engine here\n  there is: no GPU\n  to do: look at"
    ):
        plugin.pd_init_engine(request)


@pytest.mark.parametrize(
    ("create", "reason"),
    [
        ("pass", ""),
        ("raise RuntimeError('no active RDMA device on this host')", "no active RDMA device on this host"),
        (
            "import os; os._exit(255)",
            "creating an engine ends with status 255: it said nothing; "
            "MORI ends the process without an AMD GPU or librocm_smi64.so.1",
        ),
    ],
)
def test_an_engine_is_created_in_another_process_before_one_is_here(
    tmp_path: Path, create: str, reason: str
) -> None:
    program = f"{OF_MORI}\nprint(json.dumps(build.try_engine(MoriOptions(), {{}}, xgmi=False).refusal))"
    done = run_python("-c", program, path=install(tmp_path, MORI.format(create=create)))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == reason
