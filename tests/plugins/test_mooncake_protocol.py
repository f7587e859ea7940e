"""The choice of the protocol, on machines that are handed in, and what a real engine says of its own."""

from __future__ import annotations

import json

import pytest
from distributions import run_python
from pd_mooncake.config import Protocol
from pd_mooncake.protocol import SWITCHES, Machine, choose, effective, start_environment

from pdcore.contract.backend import ProtocolChoice
from pdcore.model import Certainty
from pdcore.selection.installation import Installation

PLAIN = Installation()
EVERY = tuple(Protocol)


def machine(*flags: str, **devices: str) -> Machine:
    return Machine(
        Installation(flags=frozenset(flags)),
        {
            protocol: tuple(devices.get(protocol.value, "").split())
            for protocol in (Protocol.RDMA, Protocol.EFA, Protocol.ASCEND)
        },
    )


def chosen(there: Machine, given: Protocol | None = None, device: str = "", **environ: str) -> ProtocolChoice:
    return choose(given, EVERY, device, there, environ)


def first_reason(choice: ProtocolChoice) -> str:
    return f"{choice.verdicts[0].protocol}: {choice.verdicts[0].reason}"


@pytest.mark.parametrize(
    ("there", "protocol"),
    [
        (machine(rdma="mlx5_0"), "rdma"),
        (machine("SUPPORT_EFA", efa="rdmap0s31"), "efa"),
        (machine(ascend="davinci0"), "ascend"),
        (machine(rdma="mlx5_0", ascend="davinci0"), "rdma"),
        (machine("SUPPORT_MNNVL"), None),
        (machine(), None),
    ],
)
def test_the_machine_decides_and_never_for_tcp(there: Machine, protocol: str | None) -> None:
    assert chosen(there).protocol == protocol


def test_rdma_without_a_device_is_an_error_with_the_fix() -> None:
    choice = chosen(machine())
    assert choice.protocol is None
    assert first_reason(choice) == (
        "rdma: no RDMA device in /sys/class/infiniband, the engine would use TCP or fail"
    )
    assert choice.fix == "select mooncake_tcp, or bring a device up"


def test_every_candidate_gets_a_verdict_and_the_wanted_one_first() -> None:
    choice = chosen(machine(), Protocol.EFA)
    assert choice.verdicts[0].protocol == "efa"
    assert sorted(v.protocol for v in choice.verdicts) == sorted(p.value for p in Protocol)
    assert all(v.reason for v in choice.verdicts)
    assert [v.protocol for v in choice.verdicts if v.usable] == ["tcp"]


def test_efa_devices_are_not_rdma_devices() -> None:
    choice = chosen(machine(efa="rdmap0s31"), Protocol.RDMA)
    assert choice.protocol is None
    assert choice.fix == "select mooncake_efa or mooncake_tcp, or bring a device up"


def test_an_efa_build_would_use_tcp_for_rdma() -> None:
    choice = chosen(machine("SUPPORT_EFA", rdma="mlx5_0"), Protocol.RDMA)
    assert choice.protocol is None
    assert first_reason(choice) == "rdma: an EFA build would use TCP"


@pytest.mark.parametrize(
    ("protocol", "flag"),
    [
        (Protocol.EFA, "SUPPORT_EFA"),
        (Protocol.NVLINK, "SUPPORT_MNNVL"),
        (Protocol.INTRA_NVLINK, "SUPPORT_INTRA_NVLINK"),
    ],
)
def test_a_build_without_the_protocol_is_refused(protocol: Protocol, flag: str) -> None:
    without, with_it = machine(efa="rdmap0s31"), machine(flag, efa="rdmap0s31")
    assert first_reason(chosen(without, protocol)).endswith(f"this build has no {flag}")
    assert chosen(with_it, protocol).protocol == protocol.value


@pytest.mark.parametrize("value", ["0", "", "false", "1"])
def test_mc_force_tcp_counts_as_set_whatever_its_value(value: str) -> None:
    choice = chosen(machine(rdma="mlx5_0"), MC_FORCE_TCP=value)
    assert choice.protocol is None
    assert first_reason(choice) == (
        f"rdma: MC_FORCE_TCP={value} is set: it counts as set whatever its value, and means tcp"
    )
    assert choice.fix.startswith("unset MC_FORCE_TCP")


def test_an_rdma_device_that_is_not_there_is_named() -> None:
    choice = chosen(machine(rdma="mlx5_0 mlx5_1"), device="mlx5_1,mlx5_7")
    assert choice.protocol is None
    assert first_reason(choice) == "rdma: no rdma device mlx5_7, there is mlx5_0, mlx5_1"
    assert chosen(machine(rdma="mlx5_0 mlx5_1"), device="mlx5_1").protocol == "rdma"


def test_tcp_takes_no_device() -> None:
    assert (
        first_reason(chosen(machine(), Protocol.TCP, "mlx5_0")) == "tcp: no tcp device mlx5_0, there is none"
    )


def test_an_engine_sees_its_own_switch_and_no_other_while_it_starts() -> None:
    for protocol in Protocol:
        seen = start_environment(protocol)
        assert set(seen) == set(SWITCHES)
        assert [value for value in seen.values() if value is not None] in ([], ["1"])
    assert start_environment(Protocol.TCP)["MC_FORCE_TCP"] == "1"
    assert start_environment(Protocol.RDMA)["MC_FORCE_TCP"] is None


def test_a_transport_is_verified_only_by_what_the_engine_announces() -> None:
    assert effective(Protocol.TCP, "tcp").certainty is Certainty.VERIFIED
    assert effective(Protocol.RDMA, None).certainty is Certainty.INFERRED
    assert effective(Protocol.ASCEND, None).certainty is Certainty.UNKNOWN


def in_a_process(code: str, **environ: str) -> list[object]:
    """What a program prints as JSON; the library belongs to a whole process, so each gets its own."""
    done = run_python("-c", f"import json\n{code}", path=[], environ=environ)
    assert done.returncode == 0, done.stderr
    told: list[object] = json.loads(done.stdout)
    return told


def test_a_real_engine_announces_tcp() -> None:
    code = """
import os
from pd_mooncake.library import NativeSettings, announced, load
library = load({})
engine = library.start(NativeSettings("127.0.0.1", "tcp", "", 5.0))
told = announced("127.0.0.1", engine.get_rpc_port(), 5.0)
left = [name for name in ("MC_FORCE_TCP", "MC_TRANSFER_TIMEOUT", "MC_LOG_LEVEL") if name in os.environ]
print(json.dumps([library.announced, told, left]))
"""
    assert in_a_process(code) == ["tcp", "tcp", []]


def test_an_engine_in_another_disguise_is_refused() -> None:
    code = """
from pd_mooncake.library import NativeSettings, load
from pdcore.errors import EngineError
try:
    load({}).start(NativeSettings("127.0.0.1", "efa", "", 5.0))
except EngineError as error:
    print(json.dumps([error.happened, error.there_is]))
"""
    happened, there_is = in_a_process(code)
    assert happened == "the Mooncake engine did not take the protocol 'efa'"
    assert there_is in ("it tells its peers 'tcp'", "it tells its peers 'rdma'")


def test_rdma_without_a_device_fails_in_the_engine_too() -> None:
    code = """
from pd_mooncake.library import NativeSettings, load
from pdcore.errors import EngineError
try:
    load({}).start(NativeSettings("127.0.0.1", "rdma", "no_such_device", 5.0))
except EngineError as error:
    print(json.dumps([error.happened, error.there_is]))
"""
    assert in_a_process(code) == [
        "the Mooncake engine did not start on 127.0.0.1 with 'rdma'",
        "initialize() returned -1",
    ]


def test_settings_that_the_library_reads_when_it_loads_cannot_change_afterwards() -> None:
    code = """
from pd_mooncake.library import NativeSettings, load
from pdcore.errors import EngineError
library = load({"MC_MIN_RPC_PORT": "21000", "MC_MAX_RPC_PORT": "22000"})
port = library.start(NativeSettings("127.0.0.1", "tcp", "", 5.0)).get_rpc_port()
assert load({}) is library
try:
    load({"MC_MIN_RPC_PORT": "23000", "MC_LOG_LEVEL": "INFO"})
except EngineError as error:
    print(json.dumps([21000 <= port <= 22000, error.there_is]))
"""
    assert in_a_process(code) == [
        True,
        "MC_MIN_RPC_PORT=21000 then, MC_MIN_RPC_PORT=23000 now; "
        "MC_LOG_LEVEL=ERROR then, MC_LOG_LEVEL=INFO now",
    ]


def test_a_log_directory_is_refused_before_the_library_aborts_the_process() -> None:
    code = """
import sys
from pd_mooncake.library import load
from pdcore.errors import EngineError
try:
    load({})
except EngineError as error:
    print(json.dumps([error.happened, "mooncake.engine" in sys.modules]))
"""
    assert in_a_process(code, MC_LOG_DIR="/var/log") == [
        "MC_LOG_DIR is set, with which the Mooncake library aborts the process when it loads",
        False,
    ]
