"""Moves the KV cache of large language models from prefill to decode workers."""

__version__ = "0.1.0"
