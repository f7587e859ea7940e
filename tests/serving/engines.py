"""How each engine's server is started on a CPU: command lines and environments, nothing that runs."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from .ports import free_port

ROOT = Path(__file__).parent.parent.parent
WATCH = Path(__file__).parent / "watch"
"""Our observer within the servers, on their PYTHONPATH."""
LONGEST = 2048
"""Tokens of a prompt and its answer together, in both engines' servers."""


Settings = Mapping[str, str]
NONE: Settings = {}


class Engine(enum.Enum):
    """Which inference engine a server is."""

    VLLM = "vllm"
    SGLANG = "sglang"

    @property
    def folder(self) -> Path:
        """The engine's virtual environment, made by ``make .venv-NAME``."""
        return Path(os.environ.get(f"PDCORE_VENV_{self.name}", ROOT / f".venv-{self.value}"))

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def model(self) -> Path:
        """The tiny random model: in the environment, or where PDCORE_MODEL_VLLM (_SGLANG) says."""
        return Path(os.environ.get(f"PDCORE_MODEL_{self.name}", self.folder / "model"))

    @property
    def settings(self) -> Settings:
        """The environment of all its servers."""
        return VLLM_SETTINGS if self is Engine.VLLM else SGLANG_SETTINGS

    @property
    def imports(self) -> tuple[str, ...]:
        """The modules that bring most of what its processes import."""
        return VLLM_IMPORTS if self is Engine.VLLM else SGLANG_IMPORTS

    @property
    def spins(self) -> bool:
        """Whether its processes spin while they wait for one another, unless the nursery forked them."""
        return self is Engine.VLLM


class Role(enum.Enum):
    """What a server does: everything, or one side of it."""

    SINGLE = "single"
    PREFILL = "prefill"
    DECODE = "decode"


@attrs.frozen
class Command:
    """One server, ready to start."""

    engine: Engine
    role: Role
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    """Where it answers HTTP, on 127.0.0.1."""
    bootstrap: int | None = None
    """Where the bootstrap service of a prefill server listens."""
    alone: bool = False
    """Spawned as its users do, also where there is a nursery."""


VLLM_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(WATCH),
}
VLLM_IMPORTS = (
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "serving_calm",
)


def _vllm(
    role: Role,
    transfer: Mapping[str, Any] | None,
    more: tuple[str, ...],
    environment: Settings,
    bootstrap: int | None,
) -> Command:
    port, engine = free_port(), Engine.VLLM
    arguments = [
        *(
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(engine.model),
            "--served-model-name",
            "m",
        ),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(LONGEST), "--dtype", "float32"),
        "--enforce-eager",
    ]
    if "--block-size" not in more:
        arguments += ["--block-size", "32"]
    if transfer is not None:
        arguments += ["--kv-transfer-config", json.dumps(transfer)]
    return Command(engine, role, (*arguments, *more), VLLM_SETTINGS | dict(environment), port, bootstrap)


def vllm_single(*more: str, environment: Settings = NONE) -> Command:
    """One vLLM that does everything itself: the tokens to compare with."""
    return _vllm(Role.SINGLE, None, more, environment, None)


def vllm_pdcore(
    role: Role,
    backend: str,
    *more: str,
    options: Mapping[str, Any] | None = None,
    on_failure: str = "fail",
    environment: Settings = NONE,
) -> Command:
    """One side of vLLM over pdcore; ``options`` join kv_connector_extra_config, and ``on_failure`` is vLLM's
    kv_load_failure_policy."""
    bootstrap = free_port() if role is Role.PREFILL else None
    extra: dict[str, Any] = {"backend": backend}
    if bootstrap is not None:
        extra["bootstrap_port"] = bootstrap
    transfer = {
        "kv_connector": "PdcoreConnector",
        "kv_connector_module_path": "pdcore_vllm.connector",
        "kv_role": "kv_producer" if role is Role.PREFILL else "kv_consumer",
        "kv_load_failure_policy": on_failure,
        "kv_connector_extra_config": extra | dict(options or {}),
    }
    return _vllm(role, transfer, more, environment, bootstrap)


def vllm_own(role: Role, *more: str, environment: Settings = NONE) -> Command:
    """One side of vLLM over its own NixlConnector, in host memory."""
    transfer: dict[str, Any] = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer" if role is Role.PREFILL else "kv_consumer",
        "kv_buffer_device": "cpu",
        "kv_connector_extra_config": {"num_threads": 0},  # its default of four takes both cores by itself
    }
    side = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port()),
        "SERVING_PROGRESS": "100",
    }
    return _vllm(role, transfer, more, side | dict(environment), None)


SHIMS = ROOT / "tests" / "sglang_on_cpu" / "shims"
SGLANG_SETTINGS = {
    "SGLANG_HOST_IP": "127.0.0.1",
    "SGLANG_USE_CPU_ENGINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": os.pathsep.join((str(SHIMS), str(WATCH))),
}
SGLANG_IMPORTS = (
    "sglang.launch_server",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.models.registry",
)


def _sglang(role: Role, backend: str | None, more: tuple[str, ...], environment: Settings) -> Command:
    port, engine = free_port(), Engine.SGLANG
    arguments = [
        *("-W", "ignore", "-m", "sglang.launch_server", "--model-path", str(engine.model)),
        *("--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"),
        *(
            "--attention-backend",
            "torch_native",
            "--sampling-backend",
            "pytorch",
            "--disable-overlap-schedule",
        ),
        *("--max-total-tokens", "4096", "--max-running-requests", "8", "--skip-server-warmup"),
        "--sleep-on-idle",  # else an idle scheduler takes a processor, and there are more of them than those
    ]
    bootstrap = None
    if backend is not None:
        arguments += ["--disaggregation-mode", role.value, "--disaggregation-transfer-backend", backend]
    if role is Role.PREFILL:
        bootstrap = free_port()
        arguments += ["--disaggregation-bootstrap-port", str(bootstrap)]
    if role is Role.DECODE:
        arguments += ["--disaggregation-decode-retraction-backup", "cpu_tensor"]
    return Command(engine, role, (*arguments, *more), SGLANG_SETTINGS | dict(environment), port, bootstrap)


def sglang_single(*more: str, environment: Settings = NONE) -> Command:
    """One SGLang that does everything itself: the tokens to compare with."""
    return _sglang(Role.SINGLE, None, more, environment)


def sglang_pdcore(role: Role, backend: str, *more: str, environment: Settings = NONE) -> Command:
    """One side of SGLang over pdcore."""
    return _sglang(role, f"pdcore_{backend}", more, environment)


def sglang_own(
    role: Role, *more: str, backend: str = "mooncake_tcp", environment: Settings = NONE
) -> Command:
    """One side of SGLang over its own transfer code, which wants pinned memory unless told otherwise."""
    return _sglang(role, backend, more, {"SERVING_PAGEABLE": "1"} | dict(environment))


def missing(engine: Engine) -> str | None:
    """Say what to run when an engine is not set up here; None: it is."""
    if sys.platform != "linux":
        return "the engines run on Linux"
    if not engine.python.exists() or not engine.model.exists():
        return f"{engine.folder} or its model is missing: run `make .venv-{engine.value}/.ready`"
    return None
