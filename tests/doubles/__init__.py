"""Doubles of engine libraries that cannot be installed on every Python; none is shipped."""
