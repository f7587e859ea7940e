from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from distributions import run_python
from pd_mooncake import plugin
from pd_mooncake.config import MemPool, MooncakeOptions, Protocol, device_for, with_environment

from pdcore.config.structuring import Text, structure_options
from pdcore.contract.backend import AuxRequest, AuxRoute
from pdcore.errors import ConfigError, VariantConflictError
from pdcore.model import AuxTransport, Device, DeviceKind
from pdcore.selection.environment import check_conflicts
from pdcore.selection.installation import Installation, look_at

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[2] / "plugins" / "pd-mooncake"
SPEC = plugin.pd_backend()
VARIANTS = {variant.name: variant for variant in SPEC.variants}
PACKAGES = {"libibverbs.so.1": "libibverbs1", "libnuma.so.1": "libnuma1"}
INSTALL = "pip install 'pd-mooncake[cpu]'"


def conflict(variant: str, environ: dict[str, str], options: dict[str, object]) -> VariantConflictError:
    with pytest.raises(VariantConflictError) as caught:
        check_conflicts(VARIANTS[variant], environ, options, lambda option: "code")
    return caught.value


def test_the_names_and_their_protocols() -> None:
    assert {name: variant.protocol for name, variant in VARIANTS.items()} == {
        "mooncake_rdma": "rdma",
        "mooncake_tcp": "tcp",
        "mooncake_efa": "efa",
        "mooncake_ascend": "ascend",
        "mooncake_nvlink": "nvlink",
        "mooncake_intra_nvlink": "nvlink_intra",
    }
    assert SPEC.protocols[0] == "rdma"


def test_names_and_extras_are_registered() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    names = dict.fromkeys(["mooncake", *VARIANTS], "pd_mooncake.plugin")
    assert project["entry-points"]["pdcore.backends"] == names
    assert list(project["optional-dependencies"]) == ["cpu", "cuda12", "cuda13", "efa"]


def test_every_variant_owns_its_switches() -> None:
    set_by = {name: dict(variant.environment) for name, variant in VARIANTS.items()}
    assert set_by["mooncake_tcp"] == {"MC_FORCE_TCP": "1", "MOONCAKE_PROTOCOL": "tcp"}
    assert set_by["mooncake_rdma"] == {"MC_FORCE_HCA": "1", "MOONCAKE_PROTOCOL": "rdma"}
    assert set_by["mooncake_efa"] == {"MOONCAKE_PROTOCOL": "efa"}
    assert set_by["mooncake_nvlink"]["MC_FORCE_MNNVL"] == "1"
    assert set_by["mooncake_intra_nvlink"]["MC_INTRANODE_NVLINK"] == "1"


@pytest.mark.parametrize(
    ("variant", "environ", "options", "told"),
    [
        ("mooncake_tcp", {"MC_FORCE_HCA": "1"}, {}, ["forbids MC_FORCE_HCA", "means rdma", "MC_FORCE_HCA=1"]),
        ("mooncake_tcp", {}, {"device": "mlx5_0"}, ["forbids the option device", "device=mlx5_0"]),
        ("mooncake_tcp", {}, {"custom_mem_pool": "NVLINK"}, ["tcp does not use it"]),
        ("mooncake_tcp", {"MC_FORCE_TCP": "0"}, {}, ["sets MC_FORCE_TCP=1", "MC_FORCE_TCP=0"]),
        ("mooncake_rdma", {"MC_FORCE_TCP": "0"}, {}, ["whatever its value", "MC_FORCE_TCP=0"]),
        ("mooncake_rdma", {"MOONCAKE_PROTOCOL": "tcp"}, {}, ["sets MOONCAKE_PROTOCOL=rdma", "=tcp"]),
        ("mooncake_rdma", {}, {"protocol": "tcp"}, ["the variant is the protocol", "protocol=tcp"]),
        ("mooncake_nvlink", {"MC_INTRANODE_NVLINK": ""}, {}, ["forbids MC_INTRANODE_NVLINK", "nvlink_intra"]),
        ("mooncake_ascend", {}, {"device": "mlx5_0"}, ["ascend does not use it"]),
        ("mooncake_efa", {}, {"npu_id": 1}, ["efa does not use it"]),
    ],
)
def test_a_conflict_names_both_sides(
    variant: str, environ: dict[str, str], options: dict[str, object], told: list[str]
) -> None:
    error = conflict(variant, environ, options)
    assert all(words in error.there_is for words in told), error.there_is


def test_devices_are_a_list_a_mapping_or_a_file(tmp_path: Path) -> None:
    mapping = json.dumps({"0": "mlx5_0", "1": "mlx5_1, mlx5_2"})
    file = tmp_path / "devices.json"
    file.write_text(mapping)
    assert device_for(MooncakeOptions()) == ""
    assert device_for(MooncakeOptions(device="mlx5_0, mlx5_1")) == "mlx5_0,mlx5_1"
    assert device_for(MooncakeOptions(device=mapping, gpu_id=1)) == "mlx5_1,mlx5_2"
    assert device_for(MooncakeOptions(device=str(file))) == "mlx5_0"


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("mlx5_0,,mlx5_1", "must list devices like 'mlx5_0,mlx5_1', has 'mlx5_0,,mlx5_1'"),
        ("mlx5_0;rm", "must list devices"),
        ('{"0": "mlx5_0"', "is a malformed JSON mapping: Expecting"),
        ('{"0": ["mlx5_0"]}', "must list devices like 'mlx5_0,mlx5_1', has ['mlx5_0']"),
        ('{"gpu0": "mlx5_0"}', "must map GPU numbers to devices, has 'gpu0'"),
        ('{"1": "mlx5_0", "2": "mlx5_1"}', "has nothing for gpu_id 0, it knows 1, 2"),
        ("{}", "has nothing for gpu_id 0, it knows no GPU"),
        ("/no/such/devices.json", "names a file that cannot be read: [Errno 2]"),
    ],
)
def test_malformed_devices_are_named(device: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structure_options(MooncakeOptions, {"device": device})
    (problem,) = caught.value.problems
    assert problem.path == "backend_options.device"
    assert problem.reason.startswith(reason)


def test_an_empty_file_does_not_mean_all_devices(tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    with pytest.raises(ConfigError, match="must list devices"):
        MooncakeOptions(device=str(tmp_path / "empty.json"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_port": 40000}, "must lie in 1024..32767 or 61000..65535"),
        ({"max_port": 80}, "must lie in 1024..32767"),
        ({"min_port": 20000}, "must not exceed max_port, the range is 20000..17000"),
        ({"transfer_timeout": 4.0}, "must be >= 5.0"),
        ({"gpu_id": -1}, "must be >= 0"),
        ({"custom_mem_pool": "nvlink"}, "must be one of 'NONE', 'NVLINK', 'BAREX', 'INTRA_NODE_NVLINK'"),
        ({"protocol": "TCP"}, "must be one of 'rdma', 'tcp', 'efa', 'ascend', 'nvlink', 'nvlink_intra'"),
    ],
)
def test_what_the_engine_would_ignore_is_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        structure_options(MooncakeOptions, options)
    assert reason in caught.value.problems[0].reason


def test_options_win_over_the_environment_and_that_over_the_defaults() -> None:
    environ = {"MOONCAKE_PROTOCOL": "tcp", "MC_LOG_LEVEL": "INFO", "MC_MIN_RPC_PORT": "16000"}
    told = with_environment(MooncakeOptions(log_level="TRACE"), environ)
    assert told.protocol is Protocol.TCP
    assert told.load_variables == {"MC_LOG_LEVEL": "TRACE", "MC_MIN_RPC_PORT": "16000"}
    assert MooncakeOptions().load_variables == {}


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"from MC_TRANSFER_TIMEOUT\): .* >= 5"):
        with_environment(MooncakeOptions(), {"MC_TRANSFER_TIMEOUT": "3"})


@pytest.mark.parametrize(
    ("options", "protocol", "route"),
    [
        (MooncakeOptions(), "tcp", AuxRoute(AuxTransport.ENGINE)),
        (MooncakeOptions(send_aux_tcp=True), "rdma", AuxRoute(AuxTransport.TCP)),
        (MooncakeOptions(custom_mem_pool=MemPool.NVLINK), "nvlink", AuxRoute(AuxTransport.TCP)),
        (MooncakeOptions(custom_mem_pool=MemPool.BAREX), "rdma", AuxRoute(AuxTransport.TCP)),
        (
            MooncakeOptions(custom_mem_pool=MemPool.INTRA_NODE_NVLINK, gpu_id=2),
            "nvlink_intra",
            AuxRoute(AuxTransport.ENGINE, Device(DeviceKind.CUDA, 2)),
        ),
        (
            MooncakeOptions(gpu_id=1),
            "nvlink_intra",
            AuxRoute(AuxTransport.ENGINE, Device(DeviceKind.CUDA, 1)),
        ),
        (
            MooncakeOptions(gpu_id=1, npu_id=5),
            "ascend",
            AuxRoute(AuxTransport.ENGINE, Device(DeviceKind.NPU, 5)),
        ),
    ],
)
def test_how_aux_rows_travel(options: MooncakeOptions, protocol: str, route: AuxRoute) -> None:
    request = AuxRequest(protocol, None, options, SPEC.capabilities)
    assert plugin.pd_aux_transport(request) == route


def test_aux_rows_travel_over_tcp_when_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_SEND_AUX_TCP", "1")
    request = AuxRequest("tcp", None, MooncakeOptions(), SPEC.capabilities)
    assert plugin.pd_aux_transport(request).transport is AuxTransport.TCP
    request = AuxRequest("tcp", None, MooncakeOptions(send_aux_tcp=False), SPEC.capabilities)
    assert plugin.pd_aux_transport(request).transport is AuxTransport.ENGINE


def test_options_are_read_from_text() -> None:
    options = structure_options(MooncakeOptions, {"log_level": Text("INFO"), "npu_id": Text("3")})
    assert (options.log_level, options.npu_id) == ("INFO", 3)


@pytest.mark.parametrize(
    ("found", "reason", "fix"),
    [
        (Installation("a.b"), "", ""),
        (Installation("a.b", error="No module named 'a'"), "the library 'a.b' is not installed", INSTALL),
        (
            Installation(
                "a.b",
                missing=("libibverbs.so.1", "libnuma.so.1"),
                error="libibverbs.so.1: cannot open shared object file: No such file or directory",
            ),
            "libibverbs.so.1, libnuma.so.1 are missing",
            "apt-get install libibverbs1 libnuma1",
        ),
        (
            Installation("a.b", error="libcudart.so.12: cannot open shared object file: No such file"),
            "libcudart.so.12 is missing",
            f"install the build that fits this machine: {INSTALL}",
        ),
        (
            Installation("a.b", error="undefined symbol: x"),
            "undefined symbol: x",
            f"install the build that fits this machine: {INSTALL}",
        ),
    ],
)
def test_what_a_library_misses_comes_with_the_command(found: Installation, reason: str, fix: str) -> None:
    readiness = found.readiness(PACKAGES, INSTALL)
    assert (readiness.reason, readiness.fix, readiness.ready) == (reason, fix, not reason)


def test_a_library_is_looked_at_from_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "pdx_good": "import os\nSUPPORT_X = True\nSUPPORT_Y = False\nHIDDEN = 'PDX_HIDDEN' in os.environ",
        "pdx_exits": "import os, sys\nprint('going down', file=sys.stderr, flush=True)\nos.abort()",
        "pdx_needs": "raise ImportError('libx.so.1: cannot open shared object file: No such file')",
    }.items():
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PDX_HIDDEN", "1")
    good = look_at("pdx_good", "attrs", ("libc.so.6", "libpdx.so.9"), ("PDX_HIDDEN",))
    assert good.flags == frozenset({"SUPPORT_X"})
    assert (good.missing, good.error) == (("libpdx.so.9",), "")
    assert [name.split()[0] for name in good.distributions] == ["attrs"]
    assert look_at("pdx_exits", "pdx").error == "its import ends with status -6: going down"
    assert look_at("pdx_needs", "pdx").error.startswith("libx.so.1: cannot open")
    assert look_at("pdx_nothing", "pdx").error == "No module named 'pdx_nothing'"


def test_selecting_imports_no_engine_library() -> None:
    code = """
import json, sys
from pdcore.selection.select import select
backend = select("mooncake_tcp")
print(json.dumps([backend.protocol, [m for m in sys.modules if m.split(".")[0] == "mooncake"]]))
"""
    done = run_python("-c", code, path=[])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["tcp", []]


def test_a_backend_that_cannot_run_says_the_reason_and_the_fix_before_anything_starts() -> None:
    demo = ["-m", "pdcore", "demo", "--backend", "mooncake", "--requests", "1"]
    done = run_python(*demo, path=[], environ={"MC_FORCE_TCP": "0"})
    assert done.returncode == 1
    assert done.stdout == ""
    assert "rdma: MC_FORCE_TCP=0 is set: it counts as set whatever its value, and means tcp" in done.stderr
    assert "fix: unset MC_FORCE_TCP, or select the variant that it means" in done.stderr
    assert "Logging before InitGoogleLogging" not in done.stderr
