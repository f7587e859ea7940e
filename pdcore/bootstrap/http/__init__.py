"""A small HTTP service that strangers cannot exhaust: the bootstrap service is one, ``/metrics`` another."""
