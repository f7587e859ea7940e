"""What importing a plugin costs: no engine library, no output, no thread."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from pdcore.testing.rules import Rule
from pdcore.testing.target import Target

LOOK = """
import json, sys, threading
from importlib.metadata import entry_points
import pdcore.contract.hookspecs, pdcore.selection.select
[found] = {e.value for e in entry_points(group="pdcore.backends") if e.name == sys.argv[1]}
before, threads = set(sys.modules), threading.active_count()
__import__(found)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
own = {found.partition(".")[0], "pdcore"}
json.dump({"foreign": sorted(new - own - sys.stdlib_module_names),
           "threads": threading.active_count() - threads}, sys.stderr)
"""

SECONDS = 60.0


class _Seen(msgspec.Struct):
    foreign: list[str]
    threads: int


class Hygiene:
    """The group ``hygiene``."""

    @Rule(
        "importing a plugin's module imports no engine library, prints nothing and starts no thread",
        "an import of the library at the top of the plugin",
    )
    def test_importing_the_plugin_imports_no_engine_and_prints_nothing(self, target: Target) -> None:
        looked = subprocess.run(  # noqa: S603 - this interpreter, our own program
            [sys.executable, "-c", LOOK, target.name], capture_output=True, timeout=SECONDS, check=False
        )
        assert looked.returncode == 0, looked.stderr.decode()
        assert looked.stdout == b"", f"it printed {looked.stdout[:200]!r}"
        assert looked.stderr.startswith(b"{"), f"it printed {looked.stderr[:200]!r}"
        seen = msgspec.json.decode(looked.stderr, type=_Seen)
        assert seen.foreign == [], "import the engine inside probe and pd_init_engine, not at the top"
        assert seen.threads == 0, "it started a thread"
