"""The stand-ins that types and fast tests rest on are what the real SGLang says."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from pathlib import Path

import generate
from pdcore_sglang.names import SUPPORTED
from pdcore_sglang.plugin import fits


def test_the_stand_ins_have_the_signatures_of_the_real_sglang() -> None:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    made = generate.generated("sglang", Path(spec.origin).parent.parent)
    different = [str(path) for path, text in made.items() if (generate.HERE / path).read_text() != text]
    assert not different, f"run tests/stand_ins/generate.py sglang: {', '.join(different)} differ"


def test_this_sglang_is_one_that_the_adapter_serves_in() -> None:
    assert fits(version("sglang")), f"{version('sglang')} is not {SUPPORTED}"
