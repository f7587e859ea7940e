"""The Mooncake backend of pdcore."""
