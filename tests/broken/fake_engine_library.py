"""Stands for the library of an engine."""
