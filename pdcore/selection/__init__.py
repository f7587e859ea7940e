"""A name becomes a backend: found by its entry point, assessed, loaded, and its engine started as asked."""

from pdcore.selection.select import Backend, explain, select

__all__ = ["Backend", "explain", "select"]
