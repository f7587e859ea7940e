"""SGLang's own Mooncake sender without CUDA's pinned memory: a plug-in of SGLang, for comparisons only."""

from __future__ import annotations

import importlib
import os


def activate() -> None:
    """SGLang calls this in each of its processes. Without SERVING_PAGEABLE nothing happens."""
    if os.environ.get("SERVING_PAGEABLE") == "1":
        own = importlib.import_module("sglang.srt.disaggregation.mooncake.conn")
        own.MooncakeKVSender.supports_host_tensor_indices = False
