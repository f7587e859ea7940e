"""A run of the conformance suite: tests in processes of their own, and what came out of each."""
