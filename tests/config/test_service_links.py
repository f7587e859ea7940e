"""Variables that Kubernetes and Docker make of a service's name are told from settings and from typos."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdcore.config.service_links import service_links
from pdcore.config.sources import load_config
from pdcore.errors import ConfigError

COMMAND = Path(sys.executable).with_name("pdcore")


def kubernetes(service: str, ports: dict[str, int], protocol: str = "tcp") -> dict[str, str]:
    """Return what the kubelet makes of a Service (pkg/kubelet/envvars); unnamed ports have the name ""."""
    name = service.upper().replace("-", "_")
    first = next(iter(ports.values()))
    made = {
        f"{name}_SERVICE_HOST": "10.0.0.7",
        f"{name}_SERVICE_PORT": str(first),
        f"{name}_PORT": f"{protocol}://10.0.0.7:{first}",
    }
    for port, number in ports.items():
        if port:
            made[f"{name}_SERVICE_PORT_{port.upper().replace('-', '_')}"] = str(number)
        base = f"{name}_PORT_{number}_{protocol.upper()}"
        made[base] = f"{protocol}://10.0.0.7:{number}"
        made |= {f"{base}_PROTO": protocol, f"{base}_PORT": str(number), f"{base}_ADDR": "10.0.0.7"}
    return made


def docker(alias: str, port: int) -> dict[str, str]:
    """Return what Docker makes of a link."""
    name = alias.upper().replace("-", "_")
    base = f"{name}_PORT_{port}_TCP"
    return {
        f"{name}_NAME": f"/decode/{alias}",
        f"{name}_PORT": f"tcp://172.17.0.5:{port}",
        base: f"tcp://172.17.0.5:{port}",
        f"{base}_PROTO": "tcp",
        f"{base}_PORT": str(port),
        f"{base}_ADDR": "172.17.0.5",
        f"{name}_ENV_PATH": "/bin",
        f"{name}_ENV_no_proxy": "here",
    }


SERVICES = {
    "prefill": kubernetes("pdcore-prefill", {"": 8998}),
    "named": kubernetes("pdcore-prefill", {"http": 8998, "metrics-2": 9090}),
    "itself": kubernetes("pdcore", {"": 80}),
    "control": kubernetes("pdcore-control", {"": 8998}),
    "udp": kubernetes("pdcore-transfer-model", {"sctp": 1}, "udp"),
    "sctp": kubernetes("pdcore-x", {"": 1}, "sctp"),
    "port": kubernetes("pdcore-port", {"port": 5}),
    "service": kubernetes("pdcore-service", {"service": 5}),
    "config": kubernetes("pdcore-config", {"": 5}),
    "plugins": kubernetes("pdcore-plugins", {"": 5}),
    "backend": kubernetes("pdcore-local", {"": 5}),
    "link": docker("pdcore-prefill", 8998),
    "backend link": docker("pdcore-local", 8998),
}


@pytest.mark.parametrize("made", SERVICES.values(), ids=SERVICES)
def test_variables_of_services_are_ignored_and_everything_else_counts(made: dict[str, str]) -> None:
    environ = {**made, "PDCORE_TRANSFER_LANES_PER_PEER": "3", "PATH": "/bin"}
    loaded = load_config(environ=environ, plugin_prefixes=("local", "x"))
    assert loaded.config.transfer.lanes_per_peer == 3
    assert loaded.config.control.port == 0
    assert not loaded.config.backend_options
    assert service_links(environ) == set(made)


def test_a_typo_stays_an_error_beside_them() -> None:
    for typo in (
        "PDCORE_TRANFER_MODEL",
        "PDCORE_CONTROL_PROT",
        "PDCORE_PREFILL_SERVICE",
        "PDCORE_SERVICE_NAME",
    ):
        environ = {**SERVICES["prefill"], **SERVICES["link"], typo: "inline"}
        with pytest.raises(ConfigError, match=rf"{typo} \(from environment\): is unknown") as caught:
            load_config(environ=environ)
        assert len(caught.value.problems) == 1


def test_our_own_port_is_not_swallowed() -> None:
    assert load_config(environ={"PDCORE_CONTROL_PORT": "8998"}).config.control.port == 8998
    # The Service is there as well, and somebody wrote our variable over its.
    environ = {**SERVICES["control"], "PDCORE_CONTROL_PORT": "7"}
    assert load_config(environ=environ).config.control.port == 7
    for wrong in ("http://10.0.0.7:8998", "tcp:8998", "eighty"):
        with pytest.raises(ConfigError, match="must be an integer"):
            load_config(environ={"PDCORE_CONTROL_PORT": wrong})


def test_an_option_of_a_backend_is_not_swallowed() -> None:
    environ = {"PDCORE_X_PORT": "5", "PDCORE_X_SERVICE_HOST": "h", "PDCORE_X_NAME": "/dev/x"}
    loaded = load_config(cli={"backend": "x"}, environ=environ, plugin_prefixes=("x",))
    assert loaded.config.backend_options == {"port": "5", "service_host": "h", "name": "/dev/x"}


def test_what_is_ignored_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    made = kubernetes("pdcore-said-once", {"": 8998})
    caplog.set_level(logging.WARNING, "pdcore.settings")
    for _ in range(3):
        load_config(environ=made)
    (said,) = [record.getMessage() for record in caplog.records]
    assert all(name in said for name in made)
    assert "Kubernetes" in said
    assert "enableServiceLinks: false" in said


def test_the_demo_runs_in_such_an_environment() -> None:
    environ = {**os.environ, **SERVICES["prefill"], **SERVICES["control"], **SERVICES["backend"]}
    command = [str(COMMAND), "demo", "--requests", "1"]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("enableServiceLinks") >= 1
