"""What only a GPU can show, and the same checks in host memory: see docs/GPU.md."""
