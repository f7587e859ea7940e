"""A double of MORI-IO 1.2.4: real bytes over TCP, and a finding wherever the real library aborts or corrupts.

``mori.cpp`` and ``mori.io`` have the names of the real package; ``mori.faults`` and ``mori.findings`` are
the double's own. tests/plugins/test_mori_double.py lists the calls that are left out. Not imitated either:
GPUs, NIC timing, the full hints of error texts, unmapped addresses (they crash here too), full send queues,
bytes behind a packed descriptor, iterators given to ``wait_all``, pickled enums, port 1.
"""

__version__ = "1.2.4"
