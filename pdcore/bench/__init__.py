"""The benchmark: the same bytes through the raw engine and through pdcore, in one run, as ratios.

This process plays the prefill side and a spawned one the decode side. Raw writes and pdcore's requests
take turns, so that a machine that gets slower meanwhile slows both.
"""
