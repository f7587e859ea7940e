"""Backends that are wrong in one way each, so that the conformance suite can be seen to notice."""
