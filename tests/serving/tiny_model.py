"""tiny_model.py DIR: a random Llama with a tokenizer of bytes, for both engines, made from nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 256, 512, 4, 8, 4, 32
"""vLLM's CPU attention wants head_dim 32 or more; 4 KV heads divide by TP 1, 2 and 4."""
SPECIAL = ("<s>", "</s>", "<pad>")
VOCABULARY = 320
SPREAD = 0.12
"""Wide enough that the next token depends on all before it."""
CONTEXT = 4096


def write_tokenizer(folder: Path) -> dict[str, int]:
    """One token per byte, so that any prompt of ids below 256 is text."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {name: len(vocabulary) + i for i, name in enumerate(SPECIAL)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT}
    settings |= dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary


def write_config(folder: Path, vocabulary: dict[str, int]) -> None:
    """The shape as transformers names it."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    ids = {
        f"{name}_token_id": vocabulary[token]
        for name, token in zip(("bos", "eos", "pad"), SPECIAL, strict=True)
    }
    (folder / "config.json").write_text(json.dumps(config | ids, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(ids))


def write_weights(folder: Path) -> None:
    """Random, and the same every time."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * SPREAD).to(torch.bfloat16)

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    weights = {
        "model.embed_tokens.weight": random(VOCABULARY, HIDDEN),
        "lm_head.weight": random(VOCABULARY, HIDDEN),
        "model.norm.weight": ones,
    }
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    for layer in range(LAYERS):
        weights |= {f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = ones.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(folder: Path) -> None:
    """Write all files of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, write_tokenizer(folder))
    write_weights(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
