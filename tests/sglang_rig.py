"""What SGLang would hand the adapter, made by hand: memory, its description, and its configuration.

The adapter runs over the stand-ins of SGLang's classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
from pdcore_sglang import engine
from pdcore_sglang.handles import PdcoreReceiver, PdcoreSender
from pdcore_sglang.manager import PdcoreManager
from sglang.srt import runtime_context
from sglang.srt.disaggregation.base.conn import KVArgs, StateType
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.server_args import ServerArgs

from pdcore import BootstrapServer

PAGE, LAYERS, HEADS, TOKEN_BYTES, SLOTS = 4, 2, 2, 8, 8
FIELDS = (64, 32)
"""Bytes of a slot of each metadata field."""

Bytes = npt.NDArray[np.uint8]


@attrs.frozen
class Memory:
    """The pools of one rank, as SGLang has them: a K and a V per layer, fields, and perhaps state."""

    kv: tuple[Bytes, ...]
    fields: tuple[Bytes, ...]
    state: tuple[Bytes, ...] = ()

    @classmethod
    def of(cls, pages: int, seed: int, *, page_size: int = PAGE, state: int = 0) -> Memory:
        rng = np.random.default_rng(seed)
        shape = pages, page_size * HEADS * TOKEN_BYTES
        kv = tuple(rng.integers(0, 256, shape, np.uint8) for _ in range(2 * LAYERS))
        fields = tuple(rng.integers(0, 256, (SLOTS, size), np.uint8) for size in FIELDS)
        return cls(kv, fields, tuple(rng.integers(0, 256, (6, 24), np.uint8) for _ in range(state)))


def arguments(memory: Memory, *, page_size: int = PAGE) -> KVArgs:
    """Return SGLang's description of some memory."""
    args = KVArgs()
    args.kv_data_ptrs, args.kv_data_lens, args.kv_item_lens = _described(memory.kv)
    args.aux_data_ptrs, args.aux_data_lens, args.aux_item_lens = _described(memory.fields)
    args.kv_layer_ids, args.page_size, args.pp_rank, args.gpu_id = [], page_size, 0, 0
    args.kv_cache_dtype_str, args.system_dp_rank = "auto", 0
    args.swa_kv_cache_layout = None
    pointers, lengths, items = _described(memory.state)
    state = bool(memory.state)
    args.state_types = [StateType.DSA] if state else []
    args.state_data_ptrs, args.state_data_lens = ([pointers], [lengths]) if state else ([], [])
    args.state_item_lens = [items] if state else []
    for name in ("layer_ids", "dim_per_tensor", "slice_outer_counts", "conv_shard_groups"):
        setattr(args, f"state_{name}", [[]] if state else [])
    return args


def _described(buffers: Sequence[Bytes]) -> tuple[list[int], list[int], list[int]]:
    return [b.ctypes.data for b in buffers], [b.nbytes for b in buffers], [b[0].nbytes for b in buffers]


class Model:
    """The part of a model's configuration that the adapter reads."""

    dtype = "torch.bfloat16"
    num_hidden_layers = LAYERS
    quantization = None
    model_path, revision = "/models/llama", None

    def __init__(self, heads: int = HEADS, **config: Any) -> None:
        self._heads = heads
        self.hf_text_config = SimpleNamespace(architectures=["LlamaForCausalLM"], **config)

    def get_total_num_kv_heads(self) -> int:
        return self._heads


PARALLEL = {
    **{f"attn_{axis}_size": 1 for axis in ("tp", "cp", "dp", "dcp")},
    **{f"attn_{axis}_rank": 0 for axis in ("tp", "cp", "dp")},
    "pp_size": 1,
    "dp_size": 1,
    "dist_init_addr": None,
    "enable_kv_cache_sharding": False,
    "enable_dsa_cache_layer_split": False,
    "enable_cp_tp_group_sharing": False,
}


def configure(
    monkeypatch: pytest.MonkeyPatch,
    bootstrap: str = "127.0.0.1:8998",
    *,
    backend: str = "pdcore_local",
    model: Model | None = None,
    **parallel: object,
) -> None:
    """Publish a configuration, as SGLang does in each of its processes."""
    host, _, port = bootstrap.rpartition(":")
    said = {
        "get_parallel": SimpleNamespace(**{**PARALLEL, **parallel}),
        "get_device": SimpleNamespace(device="cpu"),
        "get_serving": SimpleNamespace(host=host),
        "get_disagg": SimpleNamespace(
            disaggregation_transfer_backend=backend,
            disaggregation_bootstrap_port=int(port),
            disaggregation_decode_host_receive_threshold=1,
            disaggregation_enable_kv_checksum=False,
        ),
        "process_model_config": model or Model(),
    }
    for name, value in said.items():
        monkeypatch.setattr(runtime_context, name, lambda value=value: value)
    monkeypatch.setattr(engine, "get_local_ip_auto", lambda: "127.0.0.1")
    unset = SimpleNamespace(get=lambda: None)
    monkeypatch.setattr(
        engine,
        "envs",
        SimpleNamespace(SGLANG_MOONCAKE_CUSTOM_MEM_POOL=unset, SGLANG_ENABLE_DISAGG_SAMPLING_MASK=unset),
    )


@attrs.frozen
class Pair:
    """A prefill and a decode manager of the adapter, over the real local engine and a real service."""

    bootstrap: str
    prefill: PdcoreManager
    decode: PdcoreManager
    source: Memory
    target: Memory

    def sender(self, room: int) -> PdcoreSender:
        return PdcoreSender(self.prefill, self.bootstrap, room)

    def receiver(self, room: int) -> PdcoreReceiver:
        made = PdcoreReceiver(self.decode, self.bootstrap, room)
        made.init(0)
        return made


@contextmanager
def paired(
    monkeypatch: pytest.MonkeyPatch,
    *,
    pages: int = 16,
    state: int = 0,
    sizes: tuple[int, int] = (PAGE, PAGE),
    **parallel: object,
) -> Iterator[Pair]:
    """Start a pair whose pages have ``sizes`` tokens; ``parallel`` is the place of the prefill rank."""
    source, target = (Memory.of(pages, n, page_size=sizes[n], state=state) for n in range(2))
    with BootstrapServer() as bootstrap:
        made: list[PdcoreManager] = []
        try:
            for memory, mode, size in (
                (source, DisaggregationMode.PREFILL, sizes[0]),
                (target, DisaggregationMode.DECODE, sizes[1]),
            ):
                place = parallel if mode is DisaggregationMode.PREFILL else {}
                configure(monkeypatch, bootstrap.address, **place)  # type: ignore[arg-type]  # one of many
                made.append(PdcoreManager(arguments(memory, page_size=size), mode, ServerArgs()))
            yield Pair(bootstrap.address, made[0], made[1], source, target)
        finally:
            for manager in made:
                manager.teardown()
