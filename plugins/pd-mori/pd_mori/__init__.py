"""The MORI-IO backend of pdcore."""
