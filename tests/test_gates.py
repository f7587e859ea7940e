"""What must stay true of the source itself: order, size, names, docstrings, versions."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import pkgutil
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import pdcore
from pdcore.contract.hookspecs import BackendHooks

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pdcore"
PLUGINS = sorted((ROOT / "plugins").iterdir())
ADAPTERS = sorted((ROOT / "adapters").iterdir())
SOURCES = sorted(path for root in (PACKAGE, *PLUGINS, *ADAPTERS) for path in root.rglob("*.py"))

FLOW = """
errors
checks
model
arguments
host
children
config
layout
pairing
events
contract
selection
plan
wire
bootstrap
memory
protocol
rooms
telemetry
managers
prefill
decode
local
demo
testing
bench
cli
"""
"""The flow: describe, configure, select an engine, plan, speak, keep rooms, manage; then what uses it."""
ORDER = FLOW.split()


def package_of(module: str) -> str:
    return module.split(".")[1]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the pdcore modules that a file imports at run time."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pdcore."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("pdcore."))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_has_its_place_in_the_order() -> None:
    there = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert there - {"__init__", "__main__", "pdcore"} == set(ORDER)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_earlier_ones(path: Path) -> None:
    name = module_name(path)
    if name.count(".") == 0 or name == "pdcore.__main__":
        return  # these may import all
    place = ORDER.index(package_of(name))
    late = [m for m in imports_of(path) if ORDER.index(package_of(m)) > place]
    assert not late, f"{name} imports {late}, which come after it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 60
    ]
    assert not long


def code_lines(path: Path) -> int:
    """Return the lines that hold code: neither blank, nor comment, nor a string that only documents."""
    text = path.read_text()
    told = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    noise = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in noise]
    return len({n for t in tokens for n in range(t.start[0], t.end[0] + 1)} - told)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda p: p.name)
def test_an_adapter_stays_thin(adapter: Path) -> None:
    assert 0 < sum(map(code_lines, adapter.rglob("*.py"))) < 600


def test_no_class_name_stands_twice() -> None:
    """Private ones count as well: whoever greps for a name finds one class."""
    counts = Counter[str]()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                counts[node.name.lstrip("_")] += 1
    assert not [name for name, count in counts.items() if count > 1]


def test_a_package_has_about_a_dozen_modules() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    assert not [f.name for f in folders if not (f / "__init__.py").exists()]
    modules = {f: [p for p in f.glob("*.py") if not p.stem.startswith("__")] for f in folders}
    assert not [f.name for f, found in modules.items() if len(found) > 13]


def test_no_module_is_called_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [p for p in SOURCES if p.stem in vague]


def test_the_core_names_no_backend() -> None:
    named = re.compile("moon" + "cake|ni" + r"xl|\bmori\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in PACKAGE.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if named.search(line)
    ]
    assert not found


def test_every_distribution_is_typed_and_of_one_version() -> None:
    pattern = re.compile(r'^version = "(.+)"$', re.MULTILINE)
    for root in (ROOT, *PLUGINS, *ADAPTERS):
        declared = pattern.findall((root / "pyproject.toml").read_text())
        assert declared == [pdcore.__version__], root
    for plugin in (*PLUGINS, *ADAPTERS):
        package = plugin / plugin.name.replace("-", "_")
        assert (package / "py.typed").is_file()
        assert 'dependencies = ["pdcore>=0.1,<0.2"]' in (plugin / "pyproject.toml").read_text()
        assert version(plugin.name) == pdcore.__version__
    assert (PACKAGE / "py.typed").is_file()


def public_objects() -> Iterator[tuple[str, object]]:
    for info in pkgutil.walk_packages(pdcore.__path__, "pdcore."):
        if info.name.endswith("__main__") or ".testing" in info.name:
            continue
        module = importlib.import_module(info.name)
        yield info.name, module
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) or (inspect.isclass(value) and value.__module__ == info.name):
                yield f"{info.name}.{name}", value
                if inspect.isclass(value):
                    for member, attribute in vars(value).items():
                        if not member.startswith("_") and (
                            inspect.isfunction(attribute) or isinstance(attribute, property)
                        ):
                            yield f"{info.name}.{name}.{member}", getattr(value, member)


def test_everything_public_has_a_docstring() -> None:
    assert not [name for name, value in public_objects() if not inspect.getdoc(value)]


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_files_that_a_document_names_are_there(path: Path) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", path.read_text())
    assert not [name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()]


def test_the_architecture_has_a_line_for_each_package() -> None:
    table = (ROOT / "docs" / "ARCHITECTURE.md").read_text().partition("## The life of a room")[0]
    assert not [name for name in ORDER if f"`{name}`" not in table]


def test_every_hook_is_documented_and_tested() -> None:
    hooks = [name for name in dir(BackendHooks) if name.startswith("pd_")]
    tests = "".join(p.read_text() for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__))
    assert len(hooks) == 7
    for hook in hooks:
        assert inspect.getdoc(getattr(BackendHooks, hook))
        assert hook in tests


def test_importing_pdcore_loads_nothing_heavy_and_scans_no_entry_points() -> None:
    code = (
        "import importlib.metadata as m, sys\n"
        "def no(*a, **k): raise SystemExit('scanned entry points')\n"
        "m.entry_points = m.distributions = no\n"
        "before = set(sys.modules)\n"
        "import pdcore\n"
        "new = {n.split('.')[0] for n in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names))\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "['pdcore']"


def test_every_public_name_can_be_reached_through_the_door() -> None:
    assert sorted(pdcore.__all__) == dir(pdcore)
    for name in pdcore.__all__:
        assert getattr(pdcore, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pdcore.__getattr__("nothing")


@pytest.mark.parametrize(
    "package", ["prefill", "decode", "local", "plan", "config", "contract", "protocol", "children"]
)
def test_the_modules_that_a_package_explains_are_there(package: str) -> None:
    folder = PACKAGE / package
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    explained = set(re.findall(r"``([a-z_]+)``", said))
    assert explained
    assert not explained - {path.stem for path in folder.glob("*")}


def test_the_tests_that_the_docs_name_are_there() -> None:
    """Those of an invariant are named by their file, and then by themselves: `test_a.py`: `test_b`."""
    modules = [*(ROOT / "tests").rglob("test_*.py"), *PACKAGE.rglob("test_*.py")]
    inside = {path.name: set(re.findall(r"def (test_\w+)", path.read_text())) for path in modules}
    named = 0
    for doc in (ROOT / "docs").rglob("*.md"):
        text = doc.read_text()
        files, tests = set(re.findall(r"`(test_\w+\.py)`", text)), set(re.findall(r"`(test_\w+)`", text))
        assert not files - set(inside), doc
        assert not tests - set().union(*inside.values()), doc
        for file, those in re.findall(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, | and )?)+)", text):
            assert not set(re.findall(r"`(test_\w+)`", those)) - inside[file], doc
            named += 1
    assert named >= 10
