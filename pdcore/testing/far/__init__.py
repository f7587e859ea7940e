"""The far process of a conformance test: an engine, or a decode manager, that does what it is asked."""
