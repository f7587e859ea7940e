"""A backend whose module cannot be imported."""

raise ImportError("libfixture.so.1: cannot open shared object file")
