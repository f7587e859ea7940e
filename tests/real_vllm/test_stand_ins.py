"""The stand-ins that types and fast tests rest on are what the real vLLM says."""

from __future__ import annotations

import importlib.util
from importlib.metadata import entry_points
from pathlib import Path

import generate
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # of what vLLM imports


def test_the_stand_ins_have_the_signatures_of_the_real_vllm() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    made = generate.generated("vllm", Path(spec.origin).parent.parent)
    different = [str(path) for path, text in made.items() if (generate.HERE / path).read_text() != text]
    assert not different, f"run tests/stand_ins/generate.py vllm: {', '.join(different)} differ"


def test_this_vllm_is_one_that_the_adapter_serves_in() -> None:
    import vllm
    from pdcore_vllm.config import TRIED

    assert vllm.__version__.startswith(f"{TRIED}.")


def test_vllm_finds_the_connector_by_its_name() -> None:
    import vllm  # noqa: F401 - its own first import brings the rest in order
    from pdcore_vllm import register
    from pdcore_vllm.connector import PdcoreConnector
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    (entry,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "pdcore"]
    assert entry.load() is register
    register()
    register()
    assert KVConnectorFactory.get_connector_class_by_name("PdcoreConnector") is PdcoreConnector
