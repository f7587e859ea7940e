"""What SGLang's configuration says of a rank: it is read here alone."""

from __future__ import annotations

from typing import Any

import attrs
from sglang.srt import runtime_context as published
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.disaggregation.base.conn import KVArgs
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.environ import envs
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.network import NetworkAddress, get_local_ip_auto

from pdcore import CPU, ConfigError, Device, Role, Topology
from pdcore.errors import ConfigProblem
from pdcore.host.address import join
from pdcore.layout.fingerprint import Fingerprint, model_fingerprint
from pdcore_sglang.names import backend_of

__all__ = ["Rank", "read_rank"]

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # no address is bound to here
AUX = """
output_ids cached_tokens output_token_logprobs_val output_token_logprobs_idx output_top_logprobs_val
output_top_logprobs_idx sampling_mask_len sampling_mask_idx sampling_logprobs output_topk_p
output_topk_index output_hidden_states bootstrap_room
"""


@attrs.frozen
class Rank:
    """One rank of an SGLang server, as its configuration describes it.

    ``bootstrap`` is the address of its server's bootstrap service (host:port), ``host`` that of this
    machine. ``latent``: MLA. ``kv_heads`` are those of the model over all ranks, ``draft_kv_heads`` those of
    its draft model (0: it has none). ``aux`` are the names of its metadata fields, in the order of KVArgs.
    """

    role: Role
    backend: str
    topology: Topology
    host: str
    bootstrap: str
    device: Device
    latent: bool
    kv_heads: int
    draft_kv_heads: int
    layers: int
    dtype: str
    fingerprint: Fingerprint
    aux: tuple[str, ...]


def read_rank(args: KVArgs, mode: DisaggregationMode, server_args: ServerArgs, latent: bool) -> Rank:
    """Return what SGLang's configuration says of this process.

    Raises:
        ConfigError: it has something switched on that moves the KV cache in a way that pdcore does not.
    """
    _refuse_what_is_not_served()
    model, kind = published.process_model_config(), published.get_device().device
    backend = backend_of(published.get_disagg().disaggregation_transfer_backend)
    assert backend is not None  # by another name SGLang makes other classes
    dtype = model.dtype if args.kv_cache_dtype_str == "auto" else args.kv_cache_dtype_str
    return Rank(
        role=Role(mode.value),
        backend=backend,
        topology=_topology(args),
        host=get_local_ip_auto(),
        bootstrap=_bootstrap(),
        device=CPU if kind == "cpu" else Device(kind, args.gpu_id),
        latent=latent,
        kv_heads=0 if latent else model.get_total_num_kv_heads(),
        draft_kv_heads=0 if latent or not args.num_draft_entries else _draft_heads(server_args),
        layers=model.num_hidden_layers,
        dtype=str(dtype).removeprefix("torch."),
        fingerprint=_fingerprint(args, model),
        aux=_aux_names(len(args.aux_data_ptrs)),
    )


def _refuse_what_is_not_served() -> None:
    parallel, disagg = published.get_parallel(), published.get_disagg()
    on = {
        "dcp_size": parallel.attn_dcp_size > 1,
        "enable_kv_cache_sharding": parallel.enable_kv_cache_sharding,
        "enable_dsa_cache_layer_split": parallel.enable_dsa_cache_layer_split,
        "enable_cp_tp_group_sharing": parallel.enable_cp_tp_group_sharing,
        "decode_host_receive_threshold": disagg.disaggregation_decode_host_receive_threshold < 1,
        "SGLANG_MOONCAKE_CUSTOM_MEM_POOL": envs.SGLANG_MOONCAKE_CUSTOM_MEM_POOL.get(),
        "device": published.get_device().device == "npu",  # and its metadata fields lie there
    }
    if wrong := [name for name, is_on in on.items() if is_on]:
        reason = "has a value with which SGLang moves the KV cache in a way that pdcore-sglang does not"
        raise ConfigError([ConfigProblem(name, "SGLang", reason) for name in wrong])


def _topology(args: KVArgs) -> Topology:
    said = published.get_parallel()
    dp = said.attn_dp_size, said.attn_dp_rank
    if said.dp_size > 1:  # replicas of their own, not data parallel attention
        dp = said.dp_size, args.system_dp_rank or 0
    tp, cp = (said.attn_tp_size, said.attn_tp_rank), (said.attn_cp_size, said.attn_cp_rank)
    return Topology(*tp, said.pp_size, args.pp_rank, *cp, *dp)


def _bootstrap() -> str:
    """Where the service of this server listens: on node 0 where there are several, by SGLang's rule."""
    host, nodes = published.get_serving().host, published.get_parallel().dist_init_addr
    if nodes:
        host = NetworkAddress.parse(nodes).resolved().host
    return join(WILDCARDS.get(host, host), published.get_disagg().disaggregation_bootstrap_port)


def _draft_heads(server_args: ServerArgs) -> int:
    path = published.get_spec().speculative_draft_model_path
    draft = ModelConfig.from_server_args(server_args, model_path=path, is_draft_model=True)
    return int(draft.get_total_num_kv_heads())


def _fingerprint(args: KVArgs, model: Any) -> Fingerprint:
    facts = {order: getattr(args, order, None) for order in ("kv_layout", "swa_kv_cache_layout")}
    facts |= {"revision": model.revision, "quantisation": model.quantization}
    return model_fingerprint(model.model_path, model.hf_text_config, **facts)


def _aux_names(count: int) -> tuple[str, ...]:
    """Return the names of SGLang's metadata fields, of which KVArgs has only the places."""
    names = AUX.split()
    if not envs.SGLANG_ENABLE_DISAGG_SAMPLING_MASK.get():
        names = [name for name in names if not name.startswith("sampling_")]
    if published.get_disagg().disaggregation_enable_kv_checksum:
        names.append("kv_checksum")
    if count == len(names) + 1:
        names.insert(names.index("bootstrap_room"), "output_dsa_topk_indices")
    return tuple(names) if count == len(names) else tuple(f"field_{n}" for n in range(count))
