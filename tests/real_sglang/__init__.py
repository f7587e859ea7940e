"""The real SGLang serves through pdcore; ``make test-sglang``."""
