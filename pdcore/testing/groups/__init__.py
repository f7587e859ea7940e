"""The conformance tests by subject, one class each."""
