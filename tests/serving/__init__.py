"""Inference servers as processes, asked over HTTP: for the tests, the demo, the soak and the comparison."""
