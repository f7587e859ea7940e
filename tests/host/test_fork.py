"""A forked child: what is its parent's is let alone there, and says so at once instead of hanging."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdcore import BootstrapServer, ForkedError
from pdcore.host.fork import Birthplace

SCRIPT = Path(__file__).parents[1] / "forked_child.py"
ENDS = 10
"""Of what the child calls, so many end something, and do nothing."""


def forked(backend: str) -> dict[str, str]:
    """Return what the script tells: by what was called, what came of it."""
    command = [sys.executable, str(SCRIPT), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    # An engine may have left a line of its own unfinished.
    told = [line.rpartition("> ")[2].rpartition(" ") for line in done.stdout.splitlines() if "> " in line]
    return {name: how for name, _, how in told}


@pytest.mark.parametrize("backend", ["local", "mooncake_tcp", "nixl_tcp"])
def test_a_child_ends_nothing_of_its_parents_and_is_refused_everything_else(backend: str) -> None:
    told = forked(backend)
    assert told.pop("held") == "True"
    assert told.pop("child") == "0"
    assert told.pop("lane ended") == "True"
    assert told.pop("own bootstrap") == "True"
    assert told.pop("parent went") == "on"
    assert told.pop("engine.register") == "EngineClosedError"
    ended = {name: how for name, how in told.items() if how == "nothing"}
    assert all(name.startswith("close ") or name == "deregister" for name in ended)
    assert len(ended) == ENDS
    assert {how for name, how in told.items() if name not in ended} == {"ForkedError"}


def in_child(action: str) -> str:
    """Do something in a child that was forked just now, and return what it says."""
    code = f"import os\nfrom pdcore import *\n{action}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_a_service_that_was_not_started_may_be_started_in_a_child_and_ends_there() -> None:
    said = in_child(
        "server = BootstrapServer()\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        "else:\n"
        "    server.start()\n"
        "    server.close()\n"
        "    print(server.address != '')\n"
    )
    assert said == "True\n"


def test_a_grandchild_is_a_child_too() -> None:
    said = in_child(
        "with BootstrapServer() as server:\n"
        "    if (child := os.fork()) or (child := os.fork()):\n"
        "        os.waitpid(child, 0)\n"
        "    else:\n"
        "        server.close()\n"
        "        print('closed', flush=True)\n"
    )
    assert said == "closed\n"


def test_a_place_is_left_in_the_child_alone() -> None:
    here = Birthplace()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, b"left" if here.left and not Birthplace().left else b"here")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 16) == b"left"
    assert not here.left
    here.require("a place")
    os.close(reader)
    os.close(writer)


OWN_PAIR = """
import sys
from pair import paired
from pdcore import PDCoreError
backend = sys.argv[1]
with paired(backend=backend) as pair:
    pair.move(1, [1], [1])
    if (child := os.fork()) == 0:
        try:
            with paired(backend=backend) as own:
                own.move(2, [1], [1])
                print("moved", flush=True)
        except PDCoreError as error:
            print(type(error).__name__, error.happened, error.there_is, sep="|", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    pair.move(3, [2], [2])
if (child := os.fork()) == 0:  # all are closed: the library is as good as new
    with paired(backend=backend) as own:
        own.move(2, [1], [1])
        print("moved", flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("backend", ["local", "mooncake_tcp", "nixl_tcp"])
def test_a_child_has_engines_of_its_own_or_is_told_why_not(backend: str) -> None:
    code = f"import os\n{OWN_PAIR}"
    here = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, backend],
        capture_output=True, text=True, timeout=120, check=False, env=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, then, status = [line for line in done.stdout.splitlines() if line][-3:]
    assert (then, status) == ("moved", "0"), done.stderr
    if backend == "local":
        assert first == "moved"
    else:
        kind, happened, there_is = first.split("|")
        assert kind == "ForkedError"
        assert happened.endswith("cannot start an engine in a forked child")
        assert "had one open when it forked this one" in there_is


def test_the_error_names_both_processes_and_what_to_do() -> None:
    here = Birthplace()
    here._forks -= 1  # as a child sees it
    with pytest.raises(ForkedError) as caught:
        here.require("a bootstrap service")
    assert caught.value.happened == "a bootstrap service was used in a forked child"
    assert caught.value.there_is == f"it belongs to process {os.getpid()}, this is {os.getpid()}"
    assert "'spawn'" in caught.value.to_do


def test_a_service_serves_again_after_it_was_closed() -> None:
    server = BootstrapServer()
    for _ in range(2):
        with server:
            assert server.address
