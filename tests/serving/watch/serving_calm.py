"""Imported by the nursery of vLLM: its processes wait for one another after some milliseconds of spinning.

vLLM's spin for a second after each step. Three servers have nine processes: on two cores those that spin keep
those that compute from it. Nothing else changes; what is spawned as users do spins as theirs does.
"""

from importlib import import_module

SECONDS = 0.003

condition = import_module("vllm.distributed.device_communicators.shm_broadcast").SpinCondition
assert condition.__init__.__defaults__ == (1,), "this vLLM spins otherwise"
condition.__init__.__defaults__ = (SECONDS,)
