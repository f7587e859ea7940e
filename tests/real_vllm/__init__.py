"""The real vLLM serves through pdcore; ``make test-vllm``."""
