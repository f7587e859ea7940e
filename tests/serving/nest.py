"""nest.py PRELOAD...: imports an engine once, and forks a server per request; run by ``nursery.py``.

A request is a line of JSON on stdin: the arguments of python, the environment and the log. The answer on
stdout is the server's process id.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import multiprocessing.context
import os
import runpy
import signal
import sys
from typing import Any


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
    runpy.run_module(arguments[module], run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve until stdin ends."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    # An engine's own processes shall not import all of it again either.
    contexts: dict[str, Any] = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = multiprocessing.get_context("fork")
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
