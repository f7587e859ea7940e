"""The real Mooncake engine over IPv6: a process speaks one family, chosen when the library is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdcore.host.machine import interface_addresses

pytestmark = pytest.mark.skipif("::1" not in interface_addresses("lo"), reason="this machine has no ::1")

MOVE = """
import sys
from pair import Pair, config, fill, pools
import attrs, json
from pdcore import BootstrapServer, DecodeManager, EngineError, PrefillManager, Topology, select
first, second = sys.argv[1:]
said, memory = {}, pools()
fill(memory, 1)
cfg, backend = attrs.evolve(config(), host=first), select("mooncake_tcp")
with (
    BootstrapServer(first) as bootstrap,
    PrefillManager(backend, memory, Topology(), bootstrap.address, cfg) as prefill,
    DecodeManager(backend, pools(), Topology(), cfg) as decode,
):
    Pair(bootstrap, prefill, decode).move(1, [1, 2], [3, 4])
    said["address"] = prefill.address
try:
    DecodeManager(backend, pools(), Topology(), attrs.evolve(config(), host=second)).close()
except EngineError as error:
    said["refused"] = str(error)
print(json.dumps(said))
"""


def moved(first: str, second: str, **variables: str) -> dict[str, str]:
    """Move a request with both sides at one host, then start a side at another, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", MOVE, first, second],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return said


def test_requests_move_over_ipv6_and_the_other_family_is_refused() -> None:
    said = moved("::1", "127.0.0.1")
    assert said["address"].startswith("[::1]:")
    assert (
        "the Mooncake library speaks IPv6 in this process, and would reach nobody over IPv4"
        in said["refused"]
    )
    assert "MC_USE_IPV6=1 when it was loaded, host is 127.0.0.1" in said["refused"]


def test_a_library_that_was_loaded_for_ipv4_is_not_taken_for_ipv6() -> None:
    said = moved("127.0.0.1", "::1")
    assert "the Mooncake library is loaded already, and reads its settings only then" in said["refused"]
    assert "MC_USE_IPV6=(not set) then, MC_USE_IPV6=1 now" in said["refused"]
