"""What goes to one decode rank: ``delivery`` is one chunk, a ``lane`` the thread that may block on that rank,
``turns`` who goes out when, ``transfer`` a shipment in the engine, in pieces whose size ``pace`` learns."""
