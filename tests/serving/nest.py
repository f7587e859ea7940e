"""nest.py PRELOAD...: imports an engine once, and forks a server per request; run by ``nursery.py``.

A request is a line of JSON on stdin: the arguments of python, the environment and the log. The answer on
stdout is the server's process id.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import multiprocessing
import multiprocessing.context
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping
from multiprocessing import forkserver, spawn
from typing import Any

PR_SET_PDEATHSIG = 1


def with_environment() -> None:
    """Let a child have its server's environment: what forks it has that of an earlier moment."""
    pickled, prepare = spawn.get_preparation_data, spawn.prepare

    def given(name: str) -> dict[str, Any]:
        return pickled(name) | {"environment": dict(os.environ)}

    def take(data: Mapping[str, Any]) -> None:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(data["environment"])
        prepare(data)

    spawn.get_preparation_data, spawn.prepare = given, take


def tell_parent(*_: object) -> None:
    """Hand a child's signal on: SGLang's send SIGQUIT to who started them when they fail."""
    os.kill(os.getppid(), signal.SIGQUIT)


def fork_what_is_spawned() -> None:
    """Let Python's own fork server, as this process is now, start what the engine would spawn.

    So a child has what was imported, and nothing of what the server did since. The fork server, which is
    its parent, ends with the server.
    """
    with_environment()
    address = f"\0serving-nest-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    alive, keeps_alive = os.pipe()
    contexts: dict[str, Any] = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = multiprocessing.get_context("forkserver")
    known: Any = forkserver._forkserver
    known.ensure_running = lambda: None  # also for a child that spawns: it has no other
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGQUIT, tell_parent)
        os.close(keeps_alive)
        try:
            forkserver.main(listener.fileno(), alive, [])
        finally:
            os._exit(0)
    listener.close()
    os.close(alive)
    known._forkserver_address, known._forkserver_alive_fd = address, keeps_alive


def become(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Turn this fork into what ``python ARGUMENTS`` would be: a session of its own, and then the module."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    module = arguments.index("-m") + 1
    sys.argv = arguments[module:]
    fork_what_is_spawned()
    runpy.run_module(arguments[module], run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve until stdin ends."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is never collected stays shared with the forks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here asks how a server ended
    while line := sys.stdin.buffer.readline():
        asked = json.loads(line)
        if (child := os.fork()) == 0:
            become(**asked)
            return
        print(child, flush=True)


if __name__ == "__main__":
    main()
