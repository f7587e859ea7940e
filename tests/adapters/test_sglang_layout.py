"""SGLang's pointer lists as layouts: heads, latents, draft models, state, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from pdcore_sglang.engine import Rank, read_rank
from pdcore_sglang.layout import kv_pool, state_pools
from sglang.srt.disaggregation.base.conn import KVArgs, StateType
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.server_args import ServerArgs
from sglang_rig import HEADS, LAYERS, PAGE, Memory, Model, arguments, configure

from pdcore import Attention, ConfigError, LayoutError, Role


def rank_of(
    args: KVArgs, *, latent: bool = False, mode: DisaggregationMode = DisaggregationMode.PREFILL
) -> Rank:
    return read_rank(args, mode, ServerArgs(), latent)


def test_a_k_and_a_v_per_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch)
    memory = Memory.of(5, 1)
    args = arguments(memory)
    layout, regions = kv_pool(args, rank_of(args))
    assert [b.name for b in layout.buffers] == ["layer.0.k", "layer.1.k", "layer.0.v", "layer.1.v"]
    assert (layout.page_size, layout.num_pages, layout.total_kv_heads) == (PAGE, 5, HEADS)
    assert (layout.attention, layout.dtype) == (Attention.HEADS, "bfloat16")
    assert [r.address for r in regions] == [b.ctypes.data for b in memory.kv]


def test_a_pipeline_stage_has_the_layers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, pp_size=2)
    args = arguments(Memory.of(5, 1))
    args.prefill_start_layer, args.pp_rank = 7, 1
    layout, _ = kv_pool(args, rank_of(args))
    assert [b.layer for b in layout.buffers] == [7, 8, 7, 8]


def test_latents_and_an_unknown_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch)
    args = arguments(Memory.of(5, 1))
    args.kv_cache_dtype_str = "nvfp4"
    layout, _ = kv_pool(args, rank_of(args, latent=True))
    assert [b.name for b in layout.buffers] == [f"layer.{n}.latent" for n in range(4)]
    assert (layout.attention, layout.dtype, layout.value_bits) == (Attention.LATENT, "nvfp4", 8)


@pytest.mark.parametrize(
    ("said", "known"), [("fp8_e4m3", "float8_e4m3fn"), ("torch.float16", "float16"), ("auto", "bfloat16")]
)
def test_dtypes_have_the_names_of_torch(monkeypatch: pytest.MonkeyPatch, said: str, known: str) -> None:
    configure(monkeypatch)
    args = arguments(Memory.of(5, 1))
    args.kv_cache_dtype_str = said
    assert kv_pool(args, rank_of(args))[0].dtype == known


def test_a_draft_model_has_layers_heads_and_pages_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch)
    monkeypatch.setattr("pdcore_sglang.engine._draft_heads", lambda _: 1)
    memory = Memory.of(5, 1)
    draft = np.zeros((3, 32), np.uint8)
    args = arguments(Memory((*memory.kv, draft, draft.copy()), memory.fields))
    args.num_draft_entries = 2
    layout, regions = kv_pool(args, rank_of(args))
    names = [b.name for b in layout.buffers[-2:]]
    assert names == [f"layer.{LAYERS}.k", f"layer.{LAYERS}.v"]
    assert [layout.units_of(b) for b in layout.buffers] == [HEADS] * 4 + [1, 1]
    assert [b.num_pages for b in layout.buffers] == [None] * 4 + [3, 3]
    assert regions[-1].length == draft.nbytes


def test_other_lists_of_buffers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch)
    memory = Memory.of(5, 1)
    for kv, words in ((memory.kv[:3], "not a K and a V per layer"), ((), "no KV buffers")):
        args = arguments(Memory(kv, memory.fields))
        with pytest.raises(LayoutError, match=words):
            kv_pool(args, rank_of(args))


def test_state_of_every_kind_that_items_can_be_numbered_of(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, attn_tp_size=2, model=Model(heads=4))
    args = arguments(Memory.of(5, 1, state=2))
    args.state_types = [StateType.MAMBA, StateType.SWA, StateType.SWA]
    for name in ("data_ptrs", "data_lens"):
        setattr(args, f"state_{name}", getattr(args, f"state_{name}") * 3)
    args.state_item_lens = [[24, 24], [48, 48], [48, 48]]
    args.state_layer_ids = [[3, 3], [], []]
    args.state_dim_per_tensor = [[6, 0], [], []]
    args.state_slice_outer_counts = [[2, 1], [], []]
    args.state_conv_shard_groups = [[[4, 4, 4], None], [], []]
    args.swa_kv_cache_layout = "nhd"
    mamba, window, draft = state_pools(args, rank_of(args))
    conv, whole = mamba.component.buffers
    assert (conv.name, conv.shape, conv.slice_dim, conv.groups) == ("3.0", (2, 6, 2), 1, (2, 2, 2))
    assert (whole.name, whole.units) == ("3.1", 1)
    assert [p.component.kind for p in (mamba, window, draft)] == ["mamba", "swa", "swa.2"]
    assert [(b.shape, b.slice_dim, b.units) for b in window.component.buffers] == [((PAGE, 2, 6), 1, 4)] * 2


def test_state_beside_latents_is_whole_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch)
    args = arguments(Memory.of(5, 1, state=1))
    (pool,) = state_pools(args, rank_of(args, latent=True))
    assert (pool.component.num_items, pool.component.buffers[0].units) == (6, 1)


def test_state_without_numbered_items_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch)
    args = arguments(Memory.of(5, 1, state=1))
    args.state_types = [StateType.DSA_TAIL]
    with pytest.raises(LayoutError, match="tail ring of a compressed DSA index"):
        state_pools(args, rank_of(args))


def test_the_place_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, "0.0.0.0:7000", attn_tp_size=4, attn_tp_rank=3, attn_dp_size=2, attn_dp_rank=1)
    args = arguments(Memory.of(5, 1))
    rank = rank_of(args, mode=DisaggregationMode.DECODE)
    assert (rank.role, rank.backend, rank.bootstrap) == (Role.DECODE, "local", "127.0.0.1:7000")
    place = rank.topology
    assert (place.tp_size, place.tp_rank, place.dp_size, place.dp_rank) == (4, 3, 2, 1)
    configure(monkeypatch, dp_size=3)
    args.system_dp_rank = 2
    place = rank_of(args).topology
    assert (place.dp_size, place.dp_rank) == (3, 2)


def test_what_moves_the_cache_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, attn_dcp_size=2, enable_kv_cache_sharding=True)
    with pytest.raises(ConfigError, match=r"dcp_size.*\n.*enable_kv_cache_sharding"):
        rank_of(arguments(Memory.of(5, 1)))


def test_a_fingerprint_tells_models_apart_and_not_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(Memory.of(5, 1))

    def fingerprint(**config: object) -> object:
        configure(monkeypatch, model=Model(**config))  # type: ignore[arg-type]  # heads is not among them
        return rank_of(args).fingerprint

    here = fingerprint(rope_theta=1, _name_or_path="/data/a")
    assert here == fingerprint(rope_theta=1, _name_or_path="/models/a")
    assert here != fingerprint(rope_theta=2, _name_or_path="/data/a")
    assert str(here) == "architectures=['LlamaForCausalLM'], model=llama, rope_theta=1"


def test_metadata_fields_have_the_names_of_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch)
    fields = [np.zeros((2, 64), np.uint8) for _ in range(11)]
    args = arguments(Memory(Memory.of(5, 1).kv, tuple(fields)))
    assert rank_of(args).aux[-3:] == ("output_hidden_states", "output_dsa_topk_indices", "bootstrap_room")
    args = arguments(Memory(Memory.of(5, 1).kv, tuple(fields[:2])))
    assert rank_of(args).aux == ("field_0", "field_1")
