from __future__ import annotations

import os
import subprocess
import sys

import attrs
import pytest

from pdcore.errors import EngineError
from pdcore.host.process import boot_id
from pdcore.local.address import LocalAddress
from pdcore.local.page import Page


@pytest.fixture
def here() -> LocalAddress:
    return LocalAddress.of(Page())


def test_another_host_is_named_with_the_way_out(here: LocalAddress) -> None:
    with pytest.raises(EngineError, match="cannot reach another host") as caught:
        attrs.evolve(here, process=attrs.evolve(here.process, boot="another-boot")).require_reachable()
    assert f"another-boot, this process on {boot_id()}" in caught.value.there_is
    assert "pdcore backends" in caught.value.to_do


def test_another_pid_namespace_is_named_with_the_way_out(here: LocalAddress) -> None:
    with pytest.raises(EngineError, match="cannot reach another pid namespace") as caught:
        attrs.evolve(here, process=attrs.evolve(here.process, pids=1)).require_reachable()
    assert "--pid=container:" in caught.value.to_do


def test_a_pid_that_is_used_again_is_not_taken_for_the_peer(here: LocalAddress) -> None:
    with pytest.raises(EngineError, match="is not the one that gave its endpoint") as caught:
        attrs.evolve(
            here, process=attrs.evolve(here.process, started=here.process.started - 1)
        ).require_reachable()
    started = here.process.started
    assert f"started at tick {started}, the endpoint says {started - 1}" in caught.value.there_is


def test_a_process_that_is_gone_is_not_reachable(here: LocalAddress) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with pytest.raises(EngineError, match="the peer is gone"):
        attrs.evolve(here, process=attrs.evolve(here.process, pid=ended.pid)).require_reachable()


def test_another_engine_at_the_same_place_is_not_taken_for_the_peer() -> None:
    page = Page()
    address = LocalAddress.of(page)
    address.require_reachable()
    page.retire()
    with pytest.raises(EngineError, match=f"the engine in process {os.getpid()} is gone"):
        address.require_reachable()


def test_a_page_that_is_not_mapped_means_the_engine_is_gone(here: LocalAddress) -> None:
    with pytest.raises(EngineError, match=r"is gone(.|\n)*holds nothing"):
        attrs.evolve(here, page=4096).require_reachable()


DENIED = """
import os
import attrs
from pdcore.local.address import LocalAddress
from pdcore.local.page import Page
from pdcore.host.process import start_time
if os.geteuid() == 0:
    os.setuid(65534)
here = LocalAddress.of(Page())
init = attrs.evolve(here.process, pid=1, started=start_time(1))
attrs.evolve(here, process=init).require_reachable()
"""


def test_a_denied_permission_names_every_fix() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", DENIED], capture_output=True, text=True, timeout=60, check=False
    )
    assert "EngineError: the memory of process 1 may not be touched" in ran.stderr
    for fix in ("same user", "kernel.yama.ptrace_scope=0", "--cap-add SYS_PTRACE"):
        assert fix in ran.stderr


def test_an_endpoint_of_another_backend_is_refused() -> None:
    with pytest.raises(EngineError, match="is not one of the backend 'local'"):
        LocalAddress.decode(b"tcp://10.0.0.1:4711")
