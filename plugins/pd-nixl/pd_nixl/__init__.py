"""The NIXL backend of pdcore."""
