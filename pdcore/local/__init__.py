"""The embedded backend: KV cache between processes of one host, written straight into their memory.

It needs no library and no hardware, and has RDMA's semantics: one side writes, the other side's
threads are not involved. It reaches the core only through its hooks (:mod:`pdcore.local.plugin`), as
any installed backend does, and is meant to be read by who writes one. In reading order:

``options``   what a user can set
``kernel``    the system calls, typed
``address``   what a peer must know to reach an engine, and whether it can be reached
``page``      the few KiB that every engine keeps readable for its peers
``gate``      the receiving side: who may write here, and the proof that somebody no longer does
``under_way`` the writing side: to whom copies are under way
``peer_gate`` the writing side's look at a peer's gate, before each copy
``vectors``   a batch as scatter lists, in bounded chunks
``copiers``   threads that copy, for asynchronous submission
``engine``    the adapter: all of the above behind :class:`pdcore.contract.engine.TransferEngine`
``plugin``    the hooks
"""
