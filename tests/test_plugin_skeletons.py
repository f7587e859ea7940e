from __future__ import annotations

import json
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from distributions import run_python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLUGINS = Path(__file__).parents[1] / "plugins"
NAMES = {
    "mori": ["mori", "mori_xgmi"],
}
TITLES = {"mori": "MORI-IO"}
EXTRAS = {"mori": ["engine"]}
ENGINE_LIBRARIES = ("mooncake", "nixl", "nixl_cu12", "nixl_cu13", "mori", "libmori_pybinds", "torch")

SELECT = """
import json, sys
from pdcore.errors import SelectionError
from pdcore.selection import select
messages = {}
for name in sys.argv[1].split(","):
    try:
        select(name)
    except SelectionError as error:
        rows = {row.name: (row.distribution, row.verdict) for row in error.rows}
        messages[name] = [error.happened, rows, error.to_do, error.more]
print(json.dumps([messages, sorted(sys.modules)]))
"""


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def installed(backend: str, tmp_path: Path) -> list[str]:
    """The content of the plugin's wheel, in a folder of its own."""
    code = "import os, sys, hatchling.build as b; os.chdir(sys.argv[1]); print(b.build_wheel(sys.argv[2]))"
    done = run_python("-c", code, str(PLUGINS / f"pd-{backend}"), str(tmp_path), path=[])
    assert done.returncode == 0, done.stderr
    with ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        wheel.extractall(tmp_path / "site")
    return [str(tmp_path / "site")]


def test_every_name_says_when_selected_that_its_engine_is_not_implemented(
    backend: str, installed: list[str]
) -> None:
    done = run_python("-c", SELECT, ",".join(NAMES[backend]), path=installed)
    assert done.returncode == 0, done.stderr
    messages, modules = json.loads(done.stdout)
    reason = f"the {TITLES[backend]} engine is not implemented in pd-{backend} 0.1.0"
    assert list(messages) == NAMES[backend]
    for name, (happened, rows, to_do, more) in messages.items():
        assert happened == f"backend {name!r} is installed but cannot run here"
        assert {rows[other][1] for other in NAMES[backend]} == {reason}
        assert rows[name][0] == f"pd-{backend} 0.1.0"
        assert rows["local"][1] == "ready"
        assert to_do == f"select 'local' (CPU memory, one host), or install a later pd-{backend}"
        assert more == f"pdcore doctor {name}"
    assert f"pd_{backend}.plugin" in modules
    assert not set(ENGINE_LIBRARIES) & set(modules)


def test_names_and_extras_are_registered(backend: str) -> None:
    project = tomllib.loads((PLUGINS / f"pd-{backend}" / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pdcore.backends"] == dict.fromkeys(NAMES[backend], f"pd_{backend}.plugin")
    assert list(project["optional-dependencies"]) == EXTRAS[backend]
    assert project["dependencies"] == ["pdcore>=0.1,<0.2"]
    assert (PLUGINS / f"pd-{backend}" / f"pd_{backend}" / "py.typed").exists()
