"""Makes the distributions of this tree known to a Python: ``python tests/gpu/entry_points.py FOLDER``.

Writes what an editable install would: metadata and entry points, read from each ``pyproject.toml``.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TREE = Path(__file__).parents[2]
DISTRIBUTIONS = (TREE, *(TREE / "plugins" / name for name in ("pd-nixl", "pd-mooncake")))


def main() -> None:
    """Write them, and print what PYTHONPATH has to hold."""
    folder = Path(sys.argv[1])
    for place in DISTRIBUTIONS:
        project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
        name, version = project["name"].replace("-", "_"), project["version"]
        known = folder / f"{name}-{version}.dist-info"
        known.mkdir(parents=True, exist_ok=True)
        (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = project.get("entry-points", {})
        lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for g, e in groups.items()]
        (known / "entry_points.txt").write_text("\n".join(lines))
    print(":".join(map(str, [*DISTRIBUTIONS, folder])))


if __name__ == "__main__":
    main()
