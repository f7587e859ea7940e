"""The KV shapes of real models, as their published configurations give them (bfloat16)."""

from __future__ import annotations

import attrs

from pdcore.layout import KVLayout

__all__ = ["MODELS", "ModelShape"]


@attrs.frozen
class ModelShape:
    """What a model's KV cache looks like: heads (MHA, GQA, MQA), or a latent (MLA) if ``latent_dim``."""

    name: str
    layers: int
    kv_heads: int = 0
    head_dim: int = 0
    latent_dim: int = 0

    def layout(self, page_size: int, num_pages: int) -> KVLayout:
        """Return the layout of one rank that holds the whole model; ``page_size`` is in tokens."""
        layers = range(self.layers)
        if self.latent_dim:
            return KVLayout.latent(
                layers=layers, latent_dim=self.latent_dim, page_size=page_size, num_pages=num_pages
            )
        return KVLayout.heads(
            layers=layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            page_size=page_size,
            num_pages=num_pages,
        )


MODELS = {
    shape.name: shape
    for shape in (
        ModelShape("deepseek-v2-lite", layers=27, latent_dim=512 + 64),
        ModelShape("deepseek-v3", layers=61, latent_dim=512 + 64),
        ModelShape("gemma-2b", layers=18, kv_heads=1, head_dim=256),
        ModelShape("gpt2", layers=12, kv_heads=12, head_dim=64),
        ModelShape("llama-3-8b", layers=32, kv_heads=8, head_dim=128),
        ModelShape("llama-3-70b", layers=80, kv_heads=8, head_dim=128),
        ModelShape("mistral-7b", layers=32, kv_heads=8, head_dim=128),
        ModelShape("qwen2.5-0.5b", layers=24, kv_heads=2, head_dim=64),
        ModelShape("qwen2.5-7b", layers=28, kv_heads=4, head_dim=128),
        ModelShape("qwen2.5-72b", layers=80, kv_heads=8, head_dim=128),
    )
}
"""Every model that ``pdcore demo --model`` knows, by name."""
