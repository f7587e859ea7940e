"""The demo: prefill and decode processes, one per rank, move KV cache; every byte is checked at the far side.

The parent plays the router. The workers know nothing of each other but the bootstrap address and the
room; what decode must find is regenerated from the seed, never taken from what was sent.
"""
